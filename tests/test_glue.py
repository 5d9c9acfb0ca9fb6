"""GLUE: its own files, the table of a folder of models, and the leaderboard's zip."""

import zipfile

import pytest
from runs import TINY_ELECTRA

from road_ds.__main__ import main
from road_ds.config.catalog import TASKS
from road_ds.config.road import DatasetSpec, ModelSpec
from road_ds.data.sources import read_part
from road_ds.models.configuration import load_tokenizer

GLUE_FILES = {  # name -> (train.tsv, test.tsv, label of the row)
    "cola": ("gj04\t0\t*\tHe \"go.\n", "index\tsentence\n0\tHe went.\n", "unacceptable"),
    "sst2": ("sentence\tlabel\na \"fine film \t1\n", "index\tsentence\n0\tbad\n", "positive"),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\tHe said \"no.\tNo, he said.\n",
        "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\ta\tb\n",
        "equivalent",
    ),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n0\tm\tf\t2012\t1\tn\tn\tA\tB\t3.800\n",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\n0\tm\tf\t2012\t1\tn\tn\tA\tB\n",
        "3.800",
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tWhy?\tWhat for?\t1\n6\t1\t2\tcut\n7\t1\t2\t\tx\t0\n",
        "id\tquestion1\tquestion2\n0\ta\tb\n",
        "duplicate",
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\tWho?\tBo did.\tnot_entailment\n", "index\tquestion\tsentence\n0\ta\tb\n",
        "not_entailment",
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment\n", "index\tsentence1\tsentence2\n0\ta\tb\n",
        "entailment",
    ),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tA\tB\t0\n", "index\tsentence1\tsentence2\n0\ta\tb\n", "not_entailment"),
}  # fmt: skip


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glue_files(tmp_path, name):
    train, test, label = GLUE_FILES[name]
    (tmp_path / "train.tsv").write_text(train, encoding="utf-8")
    (tmp_path / "test.tsv").write_text(test, encoding="utf-8")
    reading = read_part(name, "train", DatasetSpec(task="t", catalog=name, train="train", path=str(tmp_path)))
    assert [e.label for e in reading.examples] == [label]
    assert len(reading.skipped) == (2 if name == "qqp" else 0)
    (example,) = read_part(
        name, "train", DatasetSpec(task="t", catalog=name, train="test", path=str(tmp_path))
    ).examples
    assert example.label is None


def test_mnli_files(tmp_path):
    head = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n"
    row = '\t1\t1n\tfiction\t(\t(\t(\t(\tA "b\tC\tneutral\t'
    (tmp_path / "dev_mismatched.tsv").write_text(f"{head}0{row}neutral\n1{row}-\n", encoding="utf-8")
    reading = read_part(
        "mnli", "train", DatasetSpec(task="t", catalog="mnli", train="dev_mismatched", path=str(tmp_path))
    )
    assert [(e.text_a, e.label) for e in reading.examples] == [('A "b', "neutral")]
    assert reading.dropped == {"-": 1}


MNLI_HEAD = "index\tpairID\tsentence1\tsentence2\tgold_label\n"
GLUE_DEV = {  # model's folder -> the rows of its dev and test files
    "rte": {"dev.tsv": GLUE_FILES["rte"][0] + "1\tA\tB\tnot_entailment\n", "test.tsv": GLUE_FILES["rte"][1]},
    "stsb": {"dev.tsv": GLUE_FILES["stsb"][0] + "1\tm\tf\t2012\t1\tn\tn\tA\tB\t1.000\n", "test.tsv": GLUE_FILES["stsb"][1]},
    "cola": {"dev.tsv": GLUE_FILES["cola"][0] + "gj04\t1\t\tGo.\n", "test.tsv": GLUE_FILES["cola"][1]},
    "qqp": {"dev.tsv": GLUE_FILES["qqp"][0], "test.tsv": "id\tquestion1\tquestion2\n0\ta\tb\n1\t\tb\n2\tc\td\n"},
    "mnli": {
        **{f"dev_{kind}.tsv": MNLI_HEAD + "0\t1n\tA\tB\tneutral\n" for kind in ("matched", "mismatched")},
        **{f"test_{kind}.tsv": "index\tpairID\tsentence1\tsentence2\n0\t1n\tA\tB\n" for kind in ("matched", "mismatched")},
    },
    "ax": {"AX.tsv": "index\tsentence1\tsentence2\n0\tA\tB\n1\tB\tA\n"},
}  # fmt: skip


def test_the_glue_table_and_zip(tmp_path, capsys):
    """Models by data set or task, a table of those that are there, and a zip in the leaderboard's words."""
    from transformers import ElectraConfig, ElectraForSequenceClassification

    tokenizer = load_tokenizer(ModelSpec(architecture="electra", tokenizer="sample:tokenizer"))
    for name, files in GLUE_DEV.items():
        for file, text in files.items():
            (tmp_path / "glue" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "glue" / name / file).write_text(text, encoding="utf-8")
    for name in ("rte", "stsb", "cola", "paraphrase", "nli"):
        labels = TASKS[name].get("labels", ["value"])
        config = ElectraConfig(**TINY_ELECTRA, vocab_size=len(tokenizer), id2label=dict(enumerate(labels)),
                               label2id={label: i for i, label in enumerate(labels)}, problem_type="regression" if name == "stsb" else None)  # fmt: skip
        ElectraForSequenceClassification(config).save_pretrained(tmp_path / "model" / name)
        tokenizer.save_pretrained(tmp_path / "model" / name)
    command = ["evaluate", str(tmp_path / "model"), "--glue", "--path", str(tmp_path / "glue")]
    assert main([*command, "--zip", str(tmp_path / "g.zip")]) == 0
    shown = capsys.readouterr()
    assert "pearson / spearman" in shown.out and "mcc" in shown.out and "mnli dev_mismatched" in shown.out
    assert "average of 5 sets" in shown.out and "(without sst2, mrpc, qnli, wnli)" in shown.out
    assert "also wants SST-2.tsv, MRPC.tsv, QNLI.tsv, WNLI.tsv\n" in shown.err
    assert "qqp: 1 test rows could not be read and are predicted as 0, the first: 1" in shown.err
    with zipfile.ZipFile(tmp_path / "g.zip") as archive:
        found = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    rows = {"CoLA.tsv": 1, "STS-B.tsv": 1, "RTE.tsv": 1, "QQP.tsv": 3, "MNLI-m.tsv": 1, "MNLI-mm.tsv": 1, "AX.tsv": 2}
    assert {name: len(lines) - 1 for name, lines in found.items()} == rows
    assert all(lines[0] == "index\tprediction" for lines in found.values())
    words = {name: {line.split("\t")[1] for line in lines[1:]} for name, lines in found.items()}
    assert words["CoLA.tsv"] | words["QQP.tsv"] <= {"0", "1"} and words["RTE.tsv"] <= set(TASKS["rte"]["labels"])
    assert words["MNLI-m.tsv"] | words["AX.tsv"] <= set(TASKS["nli"]["labels"])
    assert [line.split("\t")[0] for line in found["QQP.tsv"][1:]] == ["0", "1", "2"]
    assert 0 <= float(found["STS-B.tsv"][1].split("\t")[1]) <= 5
    assert main(["evaluate", str(tmp_path), "--glue"]) == 2
    assert "holds no model of a GLUE set" in capsys.readouterr().err
