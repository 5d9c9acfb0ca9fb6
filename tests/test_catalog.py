"""Data sets by name: in a configuration, from the hub's real client, from folders, with any order of labels."""

import json
import subprocess
import sys

import pytest
import torch
from runs import ROOT, SHARED, TINY_ELECTRA, free_port
from stand_in_hub import client_environment, serve
from test_glue import GLUE_FILES
from test_publishers import CONTEXT, SECTION

from road_ds.__main__ import main
from road_ds.common.errors import RoadError
from road_ds.config.catalog import CATALOG, GLUE, TASKS, expand, sources
from road_ds.config.road import DatasetSpec, RoadConfig
from road_ds.config.settings import validated
from road_ds.data.batch import collate
from road_ds.data.features import load_features
from road_ds.data.sources import read_part
from road_ds.distillation.objective import supervised
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.ensemble import Ensemble
from road_ds.tasks.metrics import quac_scores
from road_ds.tasks.registry import task_from

PAPER = ["triviaqa", "natural_questions", "quac", "qa_srl", "qa_zre", "mnli", "snli", "amazon", "qqp"]
SAMPLE = {"architecture": "electra", "tokenizer": "sample:tokenizer", "config": TINY_ELECTRA}


def road(datasets, **more) -> RoadConfig:
    return validated(RoadConfig, expand({"model": SAMPLE, "steps": 1, "datasets": datasets, **more}), "road")


# ---------------------------------------------------------------------------------------------------- configuration


def test_the_papers_table_by_names():
    config = road(PAPER)
    assert list(config.datasets) == PAPER
    assert set(config.tasks) == {"mrc", "nli", "sentiment", "paraphrase"}
    assert {config.datasets[name].task for name in PAPER[:5]} == {"mrc"}
    assert config.datasets["amazon"].dev == 0.02


def test_names_stand_beside_own_data_sets_and_own_settings_win():
    own = {"task": "mood", "train": "mine.jsonl"}
    config = road(
        ["rte", {"mine": own, "small": {"catalog": "snli", "max_rows": 5, "dev": None}}],
        tasks={"mood": {"type": "regression"}, "nli": {"type": "classification", "labels": ["contradiction", "neutral", "entailment"]}},
    )  # fmt: skip
    assert config.datasets["mine"].catalog is None and config.datasets["rte"].catalog == "rte"
    assert (config.datasets["small"].max_rows, config.datasets["small"].dev) == (5, None)
    assert config.tasks["nli"]["labels"][0] == "contradiction" and config.tasks["rte"] == TASKS["rte"]
    config = road({"snli": {"task": "mood", "train": "mine.tsv"}}, tasks={"mood": {"type": "regression"}})
    assert config.datasets["snli"].catalog is None  # rows of one's own under a known name stay one's own


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (["snlii"], r"the catalog has no data set 'snlii'; did you mean 'snli'\?; it has squad, squad2"),
        (["snli", "snli"], r"datasets names 'snli' twice; give one of them another name"),
        ([3], r"datasets: expected names of the catalog"),
        ({"x": {"catalog": "mrcp"}}, r"no data set 'mrcp'; did you mean 'mrpc'\?"),
        ([{"snlii": {}}], r"datasets.snlii: no data set of the catalog has this name; did you mean 'snli'\?"),
        ([{"snli": {"pth": "f"}}], r"road.datasets.snli.pth: unknown key; did you mean 'path'\?"),
        ({"snli": {"pth": "f"}}, r"road.datasets.snli.pth: unknown key; did you mean 'path'\?"),
        ({"snli": {"max_rows": 0}}, r"road.datasets.snli.max_rows: got 0"),
    ],
)
def test_faults_of_names(datasets, message):
    with pytest.raises(RoadError, match=message):
        road(datasets)


def test_a_resolved_configuration_reads_the_same_again():
    config = road(["snli", {"amazon": {"path": "a", "sample": 10}}])
    assert validated(RoadConfig, json.loads(json.dumps(config.model_dump())), "road") == config


def test_entries_fit_their_tasks():
    for name, entry in CATALOG.items():
        task = task_from(TASKS[entry.task], name)
        assert set(entry.settings.get("label_map", {}).values()) <= set(getattr(task, "labels", ())), name
        places = [entry.hub.parts] if entry.hub else []
        for parts in [*places, *(files.parts for files in entry.files)]:
            assert entry.train in parts, name
        assert entry.licence and entry.citation and entry.files, name
    assert set(GLUE) < set(CATALOG)


def test_what_no_hub_has_is_looked_for_in_data(tmp_path, monkeypatch):
    (tmp_path / "data" / "quac").mkdir(parents=True)
    (tmp_path / "data" / "quac" / "val_v0.2.json.gz").touch()
    monkeypatch.chdir(tmp_path)
    source, settings = sources("quac", "dev", None)
    assert (source, settings["format"], settings["shape"]) == ("data/quac/val_v0.2.json.gz", "items", "quac")


def test_where_rows_are_not(tmp_path):
    spec = DatasetSpec(task="nli", catalog="snli", train="train", path=str(tmp_path))
    with pytest.raises(
        RoadError, match=r"datasets.s: .*holds no file for the part 'train'; bring snli_1.0_train.jsonl"
    ):
        read_part("s", "train", spec)
    with pytest.raises(RoadError, match=r"no such folder; expected one that save_to_disk wrote, or one with snli_1.0"):
        sources("snli", "train", str(tmp_path / "none"))
    with pytest.raises(RoadError, match=r"no part 'valid'; did you mean|no part 'valid'; it has train, dev, test"):
        sources("snli", "valid", None)
    with pytest.raises(RoadError, match=r"no hub has its rows as data .*licence.*combined-newsqa-data-v1.json"):
        sources("newsqa", "train", None)


# -------------------------------------------------------------------------------------------------------- real rows

real = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real rows are not at {SHARED}")


@real
@pytest.mark.parametrize(
    ("name", "part", "folder", "count"),
    [
        ("snli", "train", "snli", 1666), ("snli", "dev", "snli", 200), ("snli", "test", "snli", 400),
        ("squad2", "train", "squad2", 6933), ("squad2", "dev", "squad2", 1494),
        ("mrpc", "train", "mrpc", 3576), ("mrpc", "dev", "mrpc", 500), ("qa_srl_gs", "dev", "qasrl", 3714),
    ],
)  # fmt: skip
def test_real_rows_by_name(name, part, folder, count):
    spec = DatasetSpec(task="t", catalog=name, train=part, path=str(SHARED / folder))
    reading = read_part(name, "train", spec)
    assert len(reading.examples) == count and not reading.skipped and not reading.dropped
    for example in reading.examples:
        for answer in example.answers or ():
            assert example.text_b[answer.start : answer.start + len(answer.text)] == answer.text
    if name == "mrpc":
        assert {e.label for e in reading.examples} == {"equivalent", "not_equivalent"}


def test_another_number_of_rows_is_a_warning(tmp_path, cache, capsys):
    (tmp_path / "train.tsv").write_text(GLUE_FILES["rte"][0], encoding="utf-8")
    spec = DatasetSpec(task="rte", catalog="rte", train="train", path=str(tmp_path))
    load_features("rte", "train", spec, task_from(TASKS["rte"], "t"), load_tokenizer(road(["rte"]).model), cache)
    assert "train.tsv gives 1 rows, the catalog expects 2,490 in rte train" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, known in CATALOG.items() if known.hub is None])
def test_a_saved_folder_stands_for_a_set_that_no_hub_has(name, tmp_path):
    (tmp_path / "dataset_dict.json").write_text("{}")
    source, settings = sources(name, "dev", str(tmp_path))
    assert source == "validation" and settings["format"] == "disk" and settings["path"] == str(tmp_path)


# -------------------------------------------------------------------------------------------------------------- hub

NQ_TOKENS = ["Title", "<P>", "The", "Eiffel", "Tower", "is", "tall", "</P>"]
LABELS = {  # in the hub's order, which is not always ours
    **{name: ["entailment", "neutral", "contradiction"] for name in ("mnli", "snli", "ax")},
    "qqp": ["not_duplicate", "duplicate"], "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"], "wnli": ["not_entailment", "entailment"],
    "go_emotions": TASKS["emotions"]["labels"],
    "wnut_17": TASKS["emerging_ner"]["labels"],
    "mrpc": ["not_equivalent", "equivalent"], "cola": ["unacceptable", "acceptable"], "sst2": ["negative", "positive"],
}  # fmt: skip
PAIR = {"idx": 0, "sentence1": "A", "sentence2": "B", "label": 1}
SPAN = {
    "id": "s1",
    "title": "",
    "context": "In Rouen.",
    "question": "Where?",
    "answers": {"text": ["Rouen"], "answer_start": [3]},
}
MRQA = {"context": CONTEXT, "qid": "q", "question": "Which?", "answers": ["x"],
        "detected_answers": {"text": ["x"], "char_spans": [{"start": [6], "end": [10]}]}}  # fmt: skip
ARC = {"id": "x", "question": "Q", "answerKey": "B", "choices": {"text": ["a", "b"], "label": ["A", "B"]}}
ROWS = {  # as the hub's clients give them
    "squad": SPAN, "squad2": SPAN,
    "triviaqa": {"question": "Who?", "question_id": "t", "answer": {"aliases": ["Bo"], "value": "Bo"},
                 "entity_pages": {"filename": ["f"], "wiki_context": ["Then Bo."]},
                 "search_results": {"filename": [], "search_context": []}},
    "triviaqa_mrqa": {**MRQA, "subset": "TriviaQA-web"}, "newsqa_mrqa": {**MRQA, "subset": "NewsQA"},
    "natural_questions_mrqa": {**MRQA, "subset": "NaturalQuestionsShort"},
    "natural_questions": {"id": "1", "question": {"text": "what"},
                          "document": {"tokens": {"token": NQ_TOKENS, "is_html": [t[0] == "<" for t in NQ_TOKENS]}},
                          "annotations": {"long_answer": [{"start_token": 1, "end_token": 8}],
                                          "short_answers": [{"start_token": [3], "end_token": [5], "text": ["x"]}]}},
    "qa_zre": {"relation": "r", "question": "Who is XXX ?", "subject": "Bo", "context": "Bo is it .", "answers": ["it"]},
    "mnli": {"idx": 0, "premise": "A", "hypothesis": "B", "label": 1},
    "snli": {"premise": "A", "hypothesis": "B", "label": 1},
    "qqp": {"idx": 0, "question1": "A", "question2": "B", "label": 1},
    "qnli": {"idx": 0, "question": "A", "sentence": "B", "label": 1},
    "stsb": {**PAIR, "label": 3.5},
    "swag": {"startphrase": "A B", "sent1": "A", "sent2": "B", "label": 1, **{f"ending{i}": str(i) for i in range(4)}},
    "arc_challenge": ARC, "arc_easy": ARC,
    "go_emotions": {"text": "A", "labels": [2, 27], "id": "x"},
    "conll2003": {"tokens": ["EU", "wins"], "pos_tags": ["NNP", "VBZ"], "ner_tags": ["B-ORG", "O"]},
    "wnut_17": {"id": "0", "tokens": ["EU", "wins"], "ner_tags": [1, 0]},
    "ax": {"idx": 0, "premise": "A", "hypothesis": "B", "label": -1},
    **{name: {"idx": 0, "sentence": "A", "label": 1} for name in ("cola", "sst2")},
    **dict.fromkeys(("mrpc", "rte", "wnli"), PAIR),
}  # fmt: skip
PLAIN = {"id": "1", "question": "Who led?", "context": "Bo led .", "answers": [{"text": "Bo", "answer_start": 0}]}
DISK_ROWS = ROWS | {  # what the hub has as a script only comes from disk
    "quac": {"context": SECTION, "turn_ids": ["a", "b"], "questions": ["Q", "R"],
             "answers": {"texts": [["He sang."], ["CANNOTANSWER"]], "answer_starts": [[SECTION.index("He")], [35]]},
             "orig_answers": {"texts": ["He sang.", "CANNOTANSWER"], "answer_starts": [SECTION.index("He"), 35]}},
    "qa_srl": PLAIN, "qa_srl_gs": PLAIN,
    "newsqa": {"storyId": "s", "text": "So Bo left.", "type": "train",
               "questions": [{"q": "Who?", "consensus": {"s": 3, "e": 6, "noAnswer": None, "badQuestion": None}}]},
    "amazon": {"rating": 4.0, "text": "Fine", "title": "t"},
}  # fmt: skip
EXPECTED = {  # label and answers of each row
    **{name: [[labels[1], []]] for name, labels in LABELS.items()},
    **{name: [[None, ["Ōsaka"]]] for name in ("triviaqa_mrqa", "newsqa_mrqa", "natural_questions_mrqa")},
    **{name: [[None, ["Bo"]]] for name in ("qa_srl", "qa_srl_gs", "newsqa", "triviaqa")},
    "squad": [[None, ["Rouen"]]], "squad2": [[None, ["Rouen"]]], "natural_questions": [[None, ["Eiffel Tower"]]],
    "qa_zre": [[None, ["it"]]], "quac": [[None, ["He sang."]], [None, []]], "stsb": [[3.5, []]], "amazon": [["4", []]],
    "ax": [["-1", []]], "go_emotions": [[["anger", "neutral"], []]],
    "conll2003": [[["B-ORG", "O"], []]], "wnut_17": [[["B-corporation", "O"], []]],
    "swag": [["1", []]], "arc_challenge": [["B", []]], "arc_easy": [["B", []]],
}  # fmt: skip
CLIENT = """
import json, sys, time
time.sleep = lambda seconds: None  # the hub's client waits between its attempts
from road_ds.config.catalog import CATALOG, expand
from road_ds.config.road import DatasetSpec
from road_ds.data.sources import read_part
from road_ds.common.errors import RoadError
for name in json.loads(sys.argv[1]):
    try:
        spec = DatasetSpec(task="t", catalog=name, train=CATALOG[name].train)
        examples = read_part(name, "train", spec).examples
        print(json.dumps([[e.label, [a.text for a in e.answers or ()]] for e in examples]), flush=True)
    except RoadError as error:
        print(json.dumps(str(error)), flush=True)
"""


def with_names(dataset, labels):
    """The data set with its label column, or column of lists of labels, as classes of these names."""
    from datasets import ClassLabel, List

    kind = ClassLabel(names=labels)
    column = next(name for name in ("label", "labels", "ner_tags") if name in dataset.features)
    return dataset.cast_column(column, kind if column == "label" else List(kind))


def hub_files(root) -> None:
    """Each entry's repository: parquet files by configuration and split, as `push_to_hub` lays them out."""
    from datasets import Dataset

    configs: dict[str, dict[str, str]] = {}
    rows: dict = {}
    for name, row in ROWS.items():
        hub = CATALOG[name].hub
        more = [row, {**row, "label": -1}] if name == "snli" else [row]
        split = hub.parts[CATALOG[name].train].partition("[")[0]
        rows.setdefault((hub.path, hub.config, split), ([], LABELS.get(name)))[0].extend(more)
        configs.setdefault(hub.path, {})[hub.config] = split
    for (path, folder, split), (found, labels) in rows.items():
        dataset = Dataset.from_list(found)
        if labels:
            dataset = with_names(dataset, labels)
        target = root / "datasets" / path / folder / split
        target.mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(str(target / "0000.parquet"))
    for path, named in configs.items():
        lines = [f"- config_name: {c}\n  data_files:\n  - split: {s}\n    path: {c}/{s}/*\n" for c, s in named.items()]
        (root / "datasets" / path / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")


def client(names, environment, folder):
    """What the client reads of each entry, or its error."""
    command = [sys.executable, "-c", CLIENT, json.dumps(list(names))]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


def test_every_entry_from_the_hub(tmp_path):
    names = [name for name, entry in CATALOG.items() if entry.hub]
    assert sorted(ROWS) == sorted(names)
    root = tmp_path / "hub"
    hub_files(root)
    with serve(root) as url:
        found = client(names, client_environment(url, tmp_path / "home") | {"PYTHONPATH": str(ROOT)}, tmp_path)
    assert found == {name: EXPECTED[name] for name in names}


def test_without_a_hub_the_error_says_which_files_to_bring(tmp_path):
    environment = client_environment(f"http://127.0.0.1:{free_port()}", tmp_path / "home")
    found = client(["squad2", "quac"], environment | {"PYTHONPATH": str(ROOT)}, tmp_path)
    assert "the hub cannot be reached" in found["squad2"] and "\n" not in found["squad2"]
    assert (
        "set path to a folder that save_to_disk wrote, or to one with train-v2.0.json and dev-v2.0.json"
        in found["squad2"]
    )
    assert 'script only); bring train_v0.2.json and val_v0.2.json to data/quac, or set "path"' in found["quac"]


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_from_a_saved_folder(tmp_path, name):
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list([DISK_ROWS[name]])
    if name in LABELS:
        dataset = with_names(dataset, LABELS[name])
    part = CATALOG[name].train
    hub = CATALOG[name].hub
    split = hub.parts[part].partition("[")[0] if hub else part
    DatasetDict({split if split != "dev" else "validation": dataset}).save_to_disk(str(tmp_path / "saved"))
    spec = DatasetSpec(task="t", catalog=name, train=part, path=str(tmp_path / "saved"))
    found = read_part(name, "train", spec).examples
    labels = [[*e.label] if isinstance(e.label, tuple) else e.label for e in found]
    assert [[label, [a.text for a in e.answers or ()]] for label, e in zip(labels, found, strict=True)] == EXPECTED[
        name
    ]


def test_parts_of_a_saved_folder(tmp_path):
    """dev is the hub's validation split, unlabelled rows go, and a part may be the first rows of a split."""
    from datasets import ClassLabel, Dataset, DatasetDict

    rows = [{"premise": "A", "hypothesis": "B", "label": label} for label in (0, 2, -1)]
    dataset = Dataset.from_list(rows).cast_column("label", ClassLabel(names=TASKS["nli"]["labels"]))
    path = str(tmp_path / "saved")
    DatasetDict(train=dataset, validation=dataset).save_to_disk(path)
    reading = read_part("snli", "dev", DatasetSpec(task="nli", catalog="snli", dev="dev", path=path))
    assert [e.label for e in reading.examples] == ["entailment", "contradiction"]
    assert reading.dropped == {"-1": 1}
    spec = DatasetSpec(task="nli", format="disk", path=path, train="validation[:1]")
    assert [e.label for e in read_part("x", "train", spec).examples] == ["entailment"]


# ------------------------------------------------------------------------------------------------------ label order


def trained(labels, cache, steps=4):
    """The weights after a few steps on the same rows; the head's rows are put in the order of the plain list."""
    plain = TASKS["nli"]["labels"]
    config = road(["snli"])
    tokenizer = load_tokenizer(config.model)
    task = task_from({"type": "classification", "labels": labels}, "t")
    spec = DatasetSpec(task="nli", train="sample:inference.train.jsonl", max_rows=32)
    source = load_features("inference", "train", spec, task, tokenizer, cache)
    model = build_model(config.model, {"nli": task}, tokenizer, dropout=0.0, seed=0)
    order = torch.tensor([plain.index(label) for label in labels])
    head = [p for p in model.parameters() if p.shape[0] == 3]
    assert len(head) == 2
    with torch.no_grad():
        for parameter in head:  # the same start for each label, wherever it stands
            parameter.copy_(parameter[order].clone())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        batch = collate(source, range(8 * step, 8 * step + 8), tokenizer.pad_token_id)
        supervised(model(batch, "nli"), batch.labels).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for parameter in head:
            parameter.copy_(parameter[torch.argsort(order)].clone())
    return [p.detach().clone() for p in model.parameters()]


def test_any_order_of_labels_trains_to_the_same_weights(cache):
    plain = TASKS["nli"]["labels"]
    first, second = trained(plain, cache), trained([plain[2], plain[0], plain[1]], cache)
    assert max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) < 1e-6
    wrong = trained(plain, cache, steps=3)
    assert max(float((a - b).abs().max()) for a, b in zip(first, wrong, strict=True)) > 1e-4


# ---------------------------------------------------------------------------------------------------------- command


def test_datasets_command(capsys, tmp_path):
    assert main(["datasets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in CATALOG)
    (tmp_path / "train.tsv").write_text(GLUE_FILES["rte"][0], encoding="utf-8")
    assert main(["datasets", "rte", "--path", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "not_entailment, entailment" in shown and '"gold": "entailment"' in shown and "train.tsv (tsv)" in shown
    assert main(["datasets", "rt"]) == 2
    assert "did you mean 'rte'?" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- metrics


def test_quac_f1_by_hand():
    golds = {"one": ["red fox"], "none": [], "three": ["red fox", "red fox", "blue"], "apart": ["x", "y"]}
    scores = quac_scores(golds, {"one": "fox", "none": "", "three": "red fox"})
    # "three": leaving one out leaves (red fox, blue), (red fox, blue), (red fox, red fox): 1; "apart": people agree on 0
    assert scores["quac_total"] == 3
    assert scores["quac_f1"] == pytest.approx(100 * (2 / 3 + 1 + 1) / 3)
    assert scores["quac_heq"] == pytest.approx(200 / 3)
    assert quac_scores({"one": ["red"]}, {}) == {"quac_f1": 0, "quac_heq": 0, "quac_total": 1}


def test_a_pretrained_classifier_with_another_order_of_labels(tmp_path):
    """Two classifiers that differ in their labels' order only give the same accuracy."""
    from transformers import ElectraConfig, ElectraForSequenceClassification

    plain, rows = TASKS["nli"]["labels"], SHARED / "snli" / "dev.tsv"
    if not rows.is_file():
        pytest.skip(f"real rows are not at {rows}")
    tokenizer = load_tokenizer(road(["snli"]).model)
    examples = read_part(
        "snli", "train", DatasetSpec(task="t", catalog="snli", train="dev", path=str(rows.parent))
    ).examples
    accuracies = []
    torch.manual_seed(0)
    first = ElectraForSequenceClassification(ElectraConfig(**TINY_ELECTRA, vocab_size=len(tokenizer), num_labels=3))
    for order in ([0, 1, 2], [2, 0, 1]):
        config = ElectraConfig(**TINY_ELECTRA, vocab_size=len(tokenizer), id2label={i: plain[j] for i, j in enumerate(order)},
                               label2id={plain[j]: i for i, j in enumerate(order)})  # fmt: skip
        model = ElectraForSequenceClassification(config)
        state = {key: value[order] if "out_proj" in key else value for key, value in first.state_dict().items()}
        model.load_state_dict(state)
        folder = tmp_path / str(order[0])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        accuracies.append(Ensemble.of([str(folder)]).evaluate(examples).scores["accuracy"])
    assert accuracies[0] == accuracies[1] > 0
