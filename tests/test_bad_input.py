"""What a user can get wrong ends in one readable error, exit code 2, and nothing written but status.json."""

import json
from pathlib import Path

import numpy as np
import pytest
from forked import run_forked
from runs import tiny_config
from transformers import AutoTokenizer

from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.common.log import write_json
from road_ds.common.strict_json import half_character
from road_ds.config.road import DatasetSpec
from road_ds.data.features import load_features
from road_ds.tasks.classification import Classification
from road_ds.tasks.regression import Regression
from road_ds.tasks.span_qa import SpanQA

# Runs many configurations in one process, as starting one takes longer than all of them.
MANY = """
import contextlib, json, sys, tempfile
from pathlib import Path
from road_ds.train import main
for arguments in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile("w+", newline="") as errors:
        with contextlib.redirect_stderr(errors):
            code = main(arguments)
        errors.seek(0)
        lines = [line.rpartition("\\r")[2] for line in errors.read().split("\\n")]  # progress bars wipe themselves out
    before = [p for d in sys.argv[2:] for p in Path(d).rglob("*") if p.is_file() and p.read_bytes() == b"before"]
    print(json.dumps([code, "\\n".join(lines), sorted(str(p.relative_to(sys.argv[2])) for p in before)]))
"""


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(n: int, **more) -> list[dict]:
    return [{"id": str(i), "premise": f"p {i}", "hypothesis": "h", "label": "yes", **more} for i in range(n)]


def squad(*answers: tuple[str, int]) -> str:
    context = "Ada lives in Oslo."
    qas = [
        {"id": f"q{n}", "question": "Where?", "answers": [{"text": text, "answer_start": start}]}
        for n, (text, start) in enumerate(answers)
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]})


SPANS = {"type": "span_qa", "max_length": 96}
# name: (files, changes to a good configuration, what the error says)
PAIRS = {"type": "classification", "labels": ["no", "yes"], "max_length": 32}
FAULTS = {
    "empty": ({"rows.jsonl": ""}, {}, r"rows.jsonl: the data set is empty (0 bad rows skipped"),
    "no file": ({}, {}, r"rows.jsonl: no such file"),
    "unknown label": (
        {"rows.jsonl": jsonl(*pairs(2), *pairs(1, id="x", label="yess"))}, {},
        "rows.jsonl:3: label 'yess' is none of the task's labels (no, yes); did you mean 'yes'?; rename it with label_map,",
    ),
    "no labels": (
        {"rows.jsonl": jsonl({"premise": "p", "hypothesis": "h"})}, {},
        "rows.jsonl:1: the row has no label that the task of datasets.rows (classification) can learn from",
    ),
    "a label is null": ({"rows.jsonl": jsonl(*pairs(1), *pairs(1, id="x", label=None))}, {}, "rows.jsonl:2: column 'label' "),
    "same id": (
        {"rows.jsonl": jsonl(*pairs(1), *pairs(1))}, {"road.datasets.rows.dev": "rows.jsonl"},
        "rows.jsonl:2: id '0' also stands at rows.jsonl:1; rows are scored by their ids: set columns.id to another column, or to null",
    ),
    "half a character": (
        {}, {"road.tasks.pairs": {**PAIRS, "labels": ["no", "\ud83d"]}},
        "road.tasks.pairs.labels.1: holds a NUL or half a character, which neither a path nor UTF-8 can hold: mend the text",
    ),
    "malformed": ({"rows.jsonl": jsonl(*pairs(1)) + '{"id": 1,\n'}, {}, "rows.jsonl:2: malformed JSON at column"),
    "nan": (
        {"rows.jsonl": jsonl(*pairs(1, label="nan"))}, {"road.tasks.pairs": {"type": "regression"}},
        "rows.jsonl:1: label 'nan' is not a number: a regression needs one",
    ),
    "inf": (
        {"rows.jsonl": jsonl(*pairs(1, label="-inf"))}, {"road.tasks.pairs": {"type": "regression"}},
        "rows.jsonl:1: label '-inf' is not a number",
    ),
    "offset": (
        {"rows.json": squad(("Oslo", 13), ("Oslo", 12))},
        {"road.tasks.pairs": SPANS, "road.datasets.rows.train": "rows.json"},
        "rows.json data[0].paragraphs[0].qas[1]: id 'q1': answer 'Oslo' should stand at 12 of the context, which has ' Osl'",
    ),
    "no answers": (
        {"rows.jsonl": jsonl(*pairs(1))}, {"road.tasks.pairs": SPANS},
        "rows.jsonl:1: the row has no answers that the task of datasets.rows (span_qa) can learn from",
    ),
    "no train part": ({}, {"road.datasets.rows.train": None}, "datasets.rows.train: is required: a file, or a split"),
    "share too small": (
        {"rows.jsonl": jsonl(*pairs(3))}, {"road.datasets.rows.dev": 0.9},
        "datasets.rows.dev: holding out 0.9 of 3 rows leaves none to train on: give more rows, a smaller share",
    ),
    "bad dev part": ({"rows.jsonl": jsonl(*pairs(4))}, {"road.datasets.rows.dev": "dev.jsonl"}, "dev.jsonl: no such file"),
    "too long": (
        {}, {"road.tasks.pairs": {**PAIRS, "max_length": 200}},
        "road.tasks.pairs.max_length 200 is above the encoder's 160 positions",
    ),
    "architecture": ({}, {"road.model.architecture": "electrum"}, "road.model.architecture: 'electrum' is not known to"),
    "model setting": (
        {}, {"road.model.config": {"hidden_sise": 32}},
        "road.model.config.hidden_sise: electra has no such setting; did you mean 'hidden_size'?",
    ),
    "no folder": ({}, {"road.model": "./none/such/model"}, "./none/such/model: no such folder, and not a hub name"),
    "up": ({}, {"road.model": "../none"}, "../none: no such folder, and not a hub name (org/name): check the path"),
    "empty folder": ({}, {"road.model": "."}, "the folder holds no config.json: expected a Hugging Face model folder"),
    "sample": ({}, {"road.model.tokenizer": "sample:toknizer"}, "sample:toknizer: the embedded sample has no 'toknizer'"),
    "disk": (
        {}, {"road.datasets.rows": {"task": "pairs", "format": "disk", "path": "none", "train": "train"}},
        "none: no such folder; expected one that save_to_disk",
    ),
    "batch": ({}, {"train_micro_batch_size_per_gpu": 3}, "micro-batch sizes that fit 1 processes: 1, 2, 4"),
    "fp16": ({}, {"road.precision": "fp16"}, "fp16 does not run on CPU"),
    "task": ({}, {"road.tasks.pairs.labls": []}, "road.tasks.pairs.labls: unknown key; did you mean 'labels'?"),
    "key": ({}, {"road.stepz": 1}, "road.stepz: unknown key; did you mean 'steps'?"),
    "cache": ({"rows.jsonl": jsonl(*pairs(4)), "file": ""}, {"road.cache": "file/cache"}, "road.cache file/cache: cannot be"),
    "output": ({"file": ""}, {"road.output": "file/run"}, "road.output file/run: cannot be written: Not a directory"),
    "--resume": ({}, {}, "run: nothing to resume: no run was started there"),
}  # fmt: skip


def write_run(folder: Path, files: dict[str, str], changes: dict) -> Path:
    """A configuration of one data set of pairs in `folder`, with its files and some keys changed."""
    config = tiny_config(
        tasks={"pairs": dict(PAIRS)},
        datasets={"rows": {"task": "pairs", "train": "rows.jsonl"}},
        output=str(folder / "run"),
        cache=str(folder / "cache"),
    )
    config["train_batch_size"] = 12
    for key, value in changes.items():
        *blocks, last = key.split(".")
        block = config
        for name in blocks:
            block = block[name]
        block[last] = value
    spec = config["road"]["datasets"]["rows"]
    for key in ("train", "dev"):
        if isinstance(spec.get(key), str) and spec.get("format") != "disk":
            spec[key] = str(folder / spec[key])
    for key in ("cache", "output"):
        config["road"][key] = str(folder / config["road"][key])
    if config["road"]["model"] == ".":
        config["road"]["model"] = str(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    file = folder / "config.of.run.json"
    file.write_text(json.dumps(config))
    return file


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Exit code and standard error of every faulty run, by name, and their folders."""
    root = tmp_path_factory.mktemp("faults")
    commands = {}
    for number, (name, (files, changes, _)) in enumerate(FAULTS.items()):
        file = write_run(root / str(number), files, changes)
        commands[name] = ["--deepspeed_config", str(file), *([name] if name.startswith("--") else [])]
    done = run_forked("-c", MANY, json.dumps(list(commands.values())))
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return {
        name: (*result[:2], Path(command[1]).parent)
        for (name, command), result in zip(commands.items(), results, strict=True)
    }


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_in_one_readable_error_and_writes_nothing(ended, name):
    code, errors, folder = ended[name]
    assert code == 2
    lines = [line for line in errors.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 700, errors
    assert FAULTS[name][2].replace("file/", f"{folder}/file/") in lines[0]
    written = sorted(path.name for path in folder.glob("run/*"))
    assert written in ([], [".lock", "status.json"])
    if written:
        status = json.loads((folder / "run" / "status.json").read_text())
        assert status["status"] == "failed" and f"error: {status['reason']}" == lines[0]


def test_two_ranks_say_it_once_and_end_with_2(tmp_path):
    rows = jsonl(*pairs(1), *pairs(1, id="x", label="yess"))
    file = write_run(tmp_path / "a", {"rows.jsonl": rows}, {"train_micro_batch_size_per_gpu": 2})
    done = run_forked("road_ds/train.py", "--deepspeed_config", file, ranks=2)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("label 'yess' is none of the task's labels") == 1
    assert "Traceback" not in done.stdout + done.stderr
    status = json.loads((tmp_path / "a" / "run" / "status.json").read_text())
    assert status["status"] == "failed" and "label 'yess'" in status["reason"]


def test_a_used_folder_is_left_alone_until_a_run_replaces_it(tmp_path):
    """Neither a run that was not asked to replace it nor one that cannot start changes what an earlier run wrote."""
    file = write_run(tmp_path / "a", {"rows.jsonl": "", "good.jsonl": jsonl(*pairs(12))}, {})
    folder = tmp_path / "a" / "run"
    for name in ("model/pairs/model.safetensors", "checkpoints/step-00000009/manifest.json"):
        (folder / name).parent.mkdir(parents=True)
    before = ("config.json", "results.json", "model/pairs/model.safetensors", "checkpoints/step-00000009/manifest.json")
    for name in (*before, "status.json", "mine.txt"):
        (folder / name).write_text("before")
    (folder / "run.json").write_text(json.dumps({"run": "0" * 32}))
    command = ["--deepspeed_config", str(file)]
    good = ["--set", f"road.datasets.rows.train={tmp_path}/a/good.jsonl", "--set", "road.steps=1"]
    commands = [
        command,
        [*command, "--overwrite"],
        [*command, "--debug", "--overwrite"],
        [*command, *good, "--overwrite"],
    ]
    done = run_forked("-c", MANY, json.dumps(commands), str(folder))
    assert done.returncode == 0, done.stderr
    refused, faulty, debug, replaced = (json.loads(line) for line in done.stdout.splitlines() if line[:1] == "[")
    message = "holds a run already: add --resume to go on, --overwrite to remove it, or set road.output"
    assert refused == [2, f"error: {folder} {message}\n", sorted([*before, "mine.txt", "status.json"])]
    assert faulty[2] == debug[2] == sorted([*before, "mine.txt"])
    assert faulty[0] == 2 and "the data set is empty" in faulty[1] and "Traceback" not in faulty[1]
    assert debug[0] == 2 and "the data set is empty" in debug[1] and "Traceback (most recent call last)" in debug[1]
    assert replaced[0] == 0 and replaced[2] == ["mine.txt"], replaced
    assert json.loads((folder / "status.json").read_text())["status"] == "finished"
    assert json.loads((folder / "results.json").read_text())["step"] == 1
    assert not (folder / "checkpoints").exists()


def test_json_of_half_a_character_reads_back(tmp_path):
    """A path or a message may hold one: the file that says what went wrong must not fail on it."""
    write_json(tmp_path / "a.json", {"\udce9": "caf\udce9 \ud83d é"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"\udce9": "caf\udce9 \ud83d é"}


def test_half_a_character_is_found_however_deep():
    deep: object = {"caf\udce9": 1}
    for _ in range(5000):
        deep = [deep, "whole 😀"]
    assert half_character(deep) == "caf\udce9" and half_character([{"a": ["é", 1, None]}]) is None


# ------------------------------------------------------------------------------------- rows, in this process


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


@pytest.fixture
def load(tmp_path, tokenizer):
    """The features of rows written to a file."""

    def load(task, *rows, name="rows.jsonl", content=None, cache="cache", **settings):
        path = tmp_path / name
        path.write_text(jsonl(*rows) if content is None else content, encoding="utf-8")
        spec = DatasetSpec(task="t", train=str(path), **settings)
        return load_features("rows", "train", spec, task, tokenizer, tmp_path / cache)

    return load


def question(context: str, answer: str = "", text: str = "Where ?", id: str = "q") -> dict:
    found = {"text": [answer] * bool(answer), "answer_start": [context.index(answer)] * bool(answer)}
    return {"id": id, "question": text, "context": context, "answers": found}


QA = SpanQA(type="span_qa", max_length=48, max_question_length=16, doc_stride=8)
YES_NO = Classification(type="classification", labels=["no", "yes"], max_length=32)


def answers(source, context: str) -> set[str]:
    """The texts that the labels of a source's windows stand for, without "no answer"."""
    found = set()
    for feature in (source[i] for i in range(len(source))):
        offsets = np.asarray(feature.offsets).reshape(-1, 2)
        if feature.labels[1]:
            found.add(context[offsets[feature.labels[0], 0] : offsets[feature.labels[1], 1]])
    return found


@pytest.mark.parametrize(
    ("context", "answer"),
    [
        ("The flag 🇳🇴 and 👩‍👩‍👧 of Oslo.", "Oslo"),
        ("القاهرة هي عاصمة مصر .", "عاصمة"),
        ("ירושלים of Oslo", "Oslo"),
        ("e\u0301te\u0301 in Oslo", "Oslo"),  # decomposed: the tokenizer folds two characters into one
        ("\u200bOslo\u200b", "Oslo"),
        ("x" * 5000 + " Oslo", "Oslo"),
    ],
)
def test_offsets_count_characters_of_any_script(load, context, answer):
    beside = question("In Oslo .", id="other")  # of rows in which no word is known alone a run makes nothing
    found = answers(load(QA, question(context, answer), beside), context)
    assert {text.strip("\u200b") for text in found} == {answer}


def test_a_question_longer_than_the_window_is_cut(load):
    source = load(QA, question("Ada lives in Oslo .", "Oslo", text="where is Ada " * 200))
    assert answers(source, "Ada lives in Oslo .") == {"Oslo"}
    assert max(source.lengths) <= 48 and source[0].token_type_ids.tolist().count(0) == 16 + 2


@pytest.mark.parametrize("context", ["", " ", "\n\t"])
def test_an_empty_context_is_named(load, context):
    with pytest.raises(RoadError, match=r"rows\.jsonl:1: .*(is empty; expected text|the context is blank)"):
        load(QA, question(context))


def test_a_context_without_tokens_is_no_answer(load, tokenizer):
    """Characters that the tokenizer drops leave a window without context: it counts as unanswerable everywhere."""
    source = load(QA, question("\u200b\u200b"), question("In Oslo .", "Oslo", id="other"))
    features = [source[i] for i in range(len(source))]
    logits = [np.ones((2, len(feature.input_ids)), dtype=np.float32) for feature in features]
    predictions = QA.predict(list(source.examples()), features, logits)
    assert predictions[0].text == ""
    assert QA.score(list(source.examples()), predictions)["NoAns_f1"] == 100
    described = QA.describe(predictions[0])
    assert described["answer"] == "" and json.loads(json.dumps(described, allow_nan=False)) == described


def test_a_row_of_a_megabyte_is_encoded(load):
    text = "Ada lives in Oslo . " * 50_000
    source = load(YES_NO, {"text": text, "label": "yes"})
    assert len(source) == 1 and source.lengths[0] == 32 and len(source.example(0).text_a) == 10**6
    context = "Ada lives in Bergen . " * 2_000 + "Ola lives in Oslo ."
    assert answers(load(QA, question(context, "Oslo")), context) == {"Oslo"}


def test_numbers_are_labels_by_their_name(load):
    numbers = Classification(type="classification", labels=["1", "2"], max_length=16)
    assert [load(numbers, {"text": "a", "label": 2})[0].labels.tolist()] == [[1]]
    with pytest.raises(
        RoadError, match=r"rows\.jsonl:1: label 1\.0 is none of the task's labels \(1, 2\); did you mean '1'"
    ):
        load(numbers, {"text": "a", "label": 1.0})
    regression = Regression(type="regression", max_length=16)
    values = [
        load(regression, {"text": "a", "label": value}, name=f"{value}.jsonl")[0].labels for value in (2, 0.5, "1e2")
    ]
    assert np.concatenate(values).tolist() == [2, 0.5, 100]


def test_a_label_beyond_float32_is_named(load):
    """It would train as an infinity: the check is made in float64, the training in float32."""
    regression = Regression(type="regression", max_length=16)
    for value in (1e39, -1e39, "1e39", 10**39):
        with pytest.raises(RoadError, match=r"rows\.jsonl:1: label .* is beyond 3\.4e\+38: scale such labels down"):
            load(regression, {"text": "a", "label": value})
    largest = load(regression, {"text": "a", "label": 3.4e38})[0].labels
    assert np.isfinite(largest).all() and largest[0] == np.float32(3.4e38)


def test_bad_rows_are_skipped_up_to_the_limit_and_counted(load):
    good, bad = {"id": "a", "text": "t", "label": "yes"}, {"id": "b", "text": "", "label": "no"}
    source = load(YES_NO, good, bad, skip_bad=1)
    assert len(source) == 1
    assert len(source.manifest.skipped) == 1 and "rows.jsonl:2: column 'text'" in source.manifest.skipped[0]
    with pytest.raises(RoadError, match=r"rows\.jsonl:2: .* \(bad row 1; skip_bad allows 0\)"):
        load(YES_NO, good, bad)


def test_labels_are_renamed_and_dropped_by_name(load):
    rows = [{"text": str(n), "label": label} for n, label in enumerate(["Y", "no", "-", "Y"])]
    source = load(YES_NO, *rows, label_map={"Y": "yes"}, drop_labels=["-"])
    assert [source[i].labels.tolist() for i in range(3)] == [[1], [0], [1]]
    assert source.manifest.dropped == {"-": 1}


# ------------------------------------------------------------------------------------------------- the cache


def test_what_decides_on_features_is_in_the_caches_key(load):
    row = {"text": "Ada lives in Oslo", "label": "yes"}
    first = load(YES_NO, row)
    assert load(YES_NO, row).folder == first.folder
    longer = YES_NO.model_copy(update={"max_length": 64})
    turned = YES_NO.model_copy(update={"labels": ["yes", "no"]})
    others = [
        load(YES_NO, {**row, "text": "Ada lives in Bergen"}),
        load(longer, row),
        load(turned, row),
        load(YES_NO, row, columns={"text_a": "text"}),
    ]
    assert len({source.folder for source in [first, *others]}) == 5
    assert [source[0].labels.tolist() for source in [first, others[2]]] == [[1], [0]]


def test_the_same_bytes_under_another_suffix_are_other_rows(load):
    content = 'text,x\tlabel\n"a","b"\tyes\n'
    settings = {"columns": {"text_a": 0}, "header": False, "max_rows": 1}
    unlabelled = Regression(type="regression", max_length=16)
    with pytest.raises(RoadError, match=r"rows\.csv:1: the row has no label"):
        load(unlabelled, name="rows.csv", content=content, **settings)
    tsv = load(YES_NO, name="rows.tsv", content="a,yes\tyes\n", columns={"text_a": 0, "label": 1}, header=False)
    csv = load(YES_NO, name="rows.csv", content="a,yes\n", columns={"text_a": 0, "label": 1}, header=False)
    assert [tsv.example(0).text_a, csv.example(0).text_a] == ["a,yes", "a"]
    one = load(YES_NO, name="one.csv", content="a,yes\n", columns={"text_a": 0, "label": 1}, header=False)
    assert [csv.example(0).id, one.example(0).id] == ["rows-0", "one-0"]
    assert [csv.example(0).where, one.example(0).where] == ["rows.csv:1", "one.csv:1"]


def test_another_tasks_label_is_not_taken_for_one_of_this(load):
    nli = Classification(type="classification", labels=["entailment", "neutral", "contradiction"], max_length=16)
    with pytest.raises(RoadError) as raised:
        load(nli, {"text": "a", "label": "not_entailment"})
    assert "did you mean" not in str(raised.value) and "rename it with label_map" in str(raised.value)
