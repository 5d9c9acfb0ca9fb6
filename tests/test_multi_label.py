"""Several labels a row: from lists, texts and columns of 0 and 1 to a student of two teachers, against plain PyTorch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import error_of, records, tiny_config
from sklearn import metrics as sk
from test_export import ARCHITECTURES, fresh
from test_objectives import batch_of, distill
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.config.file import load_config
from road_ds.config.road import DatasetSpec
from road_ds.data.batch import IGNORED, collate
from road_ds.data.features import load_features
from road_ds.data.passes import plan
from road_ds.data.readers import Example, read
from road_ds.data.rows import Rows
from road_ds.data.sources import read_part
from road_ds.distillation.objective import Teaching, supervised
from road_ds.distillation.teach import teach
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.ensemble import Ensemble
from road_ds.models.export import TASK_FILE, export, read_task
from road_ds.models.predictor import Predictor
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.label_sets import best_threshold, label_set_baseline, label_set_scores
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.registry import heads, task_from

LABELS = ["doctor", "letter", "old"]
TASK = task_from({"type": "multi_label", "labels": LABELS}, "task")


# -------------------------------------------------------------------------------------------------------- rows


def rows_of(folder: Path, name: str, text: str, **settings) -> list:
    file = folder / name
    file.write_text(text)
    return [
        (e.text_a, e.label)
        for e in read_part("given", "train", DatasetSpec(task="t", train=str(file), **settings)).examples
    ]


def test_labels_of_a_row_come_as_a_list_a_text_or_columns_of_0_and_1(tmp_path):
    expected = [("a", ("old", "letter")), ("b", ()), ("c", ("doctor",))]
    lists = (
        '{"text": "a", "labels": ["old", "letter"]}\n{"text": "b", "labels": []}\n{"text": "c", "labels": ["doctor"]}\n'
    )
    assert rows_of(tmp_path, "lists.jsonl", lists) == expected
    cells = "text\tlabel\na\told, letter\nb\t\nc\tdoctor\n"
    assert rows_of(tmp_path, "cells.tsv", cells, label_separator=",") == expected
    flags = "text,old,letter,doctor\na,1,1.0,0\nb,0,False,0.0\nc,false,0,True\n"
    assert rows_of(tmp_path, "flags.csv", flags, columns={"label": ["old", "letter", "doctor"]}) == expected
    numbers = '{"text": "a", "labels": [2, 1]}\n{"text": "b", "labels": []}\n{"text": "c", "labels": [0]}\n'
    named = {"0": "doctor", "1": "letter", "2": "old"}
    assert rows_of(tmp_path, "numbers.jsonl", numbers, label_map=named) == expected
    assert rows_of(tmp_path, "numbers.jsonl", numbers, label_map=named, drop_labels=["1", "9"]) == expected[1:]


def test_class_labels_of_a_hugging_face_data_set_come_by_name(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=LABELS)), "id": Value("string")})
    rows = {"text": ["a", "b"], "labels": [[2, 1], []], "id": ["x", "y"]}
    DatasetDict({"train": Dataset.from_dict(rows, features=features)}).save_to_disk(str(tmp_path / "saved"))
    found = read("train", DatasetSpec(task="t", format="disk", path=str(tmp_path / "saved"), train="train")).examples
    assert [(e.id, e.label) for e in found] == [("x", ("old", "letter")), ("y", ())]


@pytest.mark.parametrize(("text", "settings", "said"), [
    ('{"text": "a", "labels": ["oldd"]}', {}, r"rows.jsonl:1: label 'oldd' is none of the task's labels \(doctor, letter, old\); did you mean 'old'"),
    ('{"text": "a", "label": "old|letter"}', {}, r"label 'old\|letter' is none .*label_separator"),
    ('{"text": "a", "labels": [["old"]]}', {}, r"label is \[.*expected text or a finite number, or a list of them"),
    ('{"text": "a", "labels": null}', {}, r'column .labels. \(columns.label\) is null'),
    ('{"text": "a", "label": 1.5}', {}, r"label 1.5 is a number: expected the names of labels"),
    ('{"text": "a", "old": 1, "letter": 2}', {"columns": {"label": ["old", "letter"]}}, r'column .letter. \(columns.label\) is 2; expected 0 or 1'),
    ('{"text": "a", "old": 1}', {"columns": {"label": ["old", "letter"]}}, r'no column .letter. \(columns.label\); found .text., .old.'),
    ('{"text": "a"}', {}, r"the row has no label .*set columns.label"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_named(text, settings, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    spec = DatasetSpec(task="t", train=str(tmp_path / "rows.jsonl"), **settings)
    with pytest.raises(RoadError, match=said):
        load_features("rows", "train", spec, TASK, load_tokenizer_of_sample(), tmp_path / "cache")


@pytest.mark.parametrize("kind", [{"type": "classification", "labels": LABELS}, {"type": "regression"}])
def test_a_task_of_one_label_refuses_a_list(kind):
    with pytest.raises(
        RoadError, match=r'row: the row has a list of labels \(old, letter\), the task takes one: set .*"multi_label"'
    ):
        task_from(kind, "t").label(Example("1", "a", None, ("old", "letter"), None, "row"))


def load_tokenizer_of_sample():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


def test_features_keep_sets_of_labels_and_targets_are_0_and_1(tmp_path):
    lists = '{"text": "a", "labels": ["old", "letter"]}\n{"text": "b", "labels": []}\n'
    (tmp_path / "rows.jsonl").write_text(lists)
    spec = DatasetSpec(task="t", train=str(tmp_path / "rows.jsonl"))
    found = load_features("rows", "train", spec, TASK, load_tokenizer_of_sample(), tmp_path / "cache")
    assert [e.label for e in found.examples()] == [("old", "letter"), ()]
    assert [f.labels.tolist() for f in (found[0], found[1])] == [[0, 1, 1], [0, 0, 0]]
    assert TASK.targets(Example("1", "a", None, None, None, "row")) == [IGNORED] * 3
    assert TASK.targets(Example("1", "a", None, "letter", None, "row")) == [0, 1, 0]
    other = task_from({"type": "multi_label", "labels": LABELS, "threshold": 0.3}, "task")
    assert other.encoding() == TASK.encoding(), "a threshold does not change what rows are encoded to"


# ------------------------------------------------------------------------------------------------------ losses


def binary(seed: int, rows: int = 12, teachers: int = 3):
    """The student's z, [rows, labels], the teachers', and labels."""
    torch.manual_seed(seed)
    z = (2 * torch.randn(rows, 3)).requires_grad_()
    return z, 3 * torch.randn(teachers, rows, 3), torch.randint(0, 2, (rows, 3))


class Answered:
    def __init__(self, logits):
        self.logits = logits


def loss_and_gradient(loss, z):
    (gradient,) = torch.autograd.grad(loss, z)
    return loss.item(), gradient


def two_classes(z):
    return TASK.outputs(Answered(z), None).logits


def bernoulli_kl(teacher, z, temperature):
    """KL of the teacher's Bernoulli distribution from the student's, both at a temperature, elementwise."""
    p, own = torch.sigmoid(teacher.double() / temperature), z.double() / temperature
    return p * (p.log() - F.logsigmoid(own)) + (1 - p) * ((1 - p).log() - F.logsigmoid(-own))


def test_hard_labels_are_binary_cross_entropy():
    z, _, labels = binary(0)
    expected = loss_and_gradient(F.binary_cross_entropy_with_logits(z.double(), labels.double()), z)
    found = loss_and_gradient(supervised(TASK.outputs(Answered(z), None), labels.flatten()).total, z)
    assert found[0] == pytest.approx(expected[0], abs=1e-6) and torch.allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("name", ["kd", "weighted_kd"])
def test_kd_is_the_kl_of_bernoulli_distributions(name):
    """Weighted KD: of each label by itself, a teacher counts W where its answer is wrong and more where it is right."""
    z, theirs, labels = binary(1)
    expected = 0.3 * F.binary_cross_entropy_with_logits(z.double(), labels.double())
    target = theirs.mean(0)
    if name == "weighted_kd":
        right = (theirs > 0) == labels.bool()
        wrong = (~right).sum(0)
        assert {0, 1, 2, 3} <= set(wrong.flatten().tolist())
        lifted = torch.where(right, (3 - 0.75 * wrong) / (3 - wrong).clamp(min=1), 0.75)
        target = torch.where(wrong == 3, theirs, lifted * theirs).mean(0)
    expected = loss_and_gradient(expected + 0.7 * 16 * bernoulli_kl(target, z, 4.0).mean(), z)
    objective = distill(objective=name, teachers={"places": ["a", "b", "c"]}, temperature=4, weight=0.7)
    teaching = Teaching(torch.stack([two_classes(t) for t in theirs]))
    found = objective(Outputs(two_classes(z)), teaching, batch_of(labels.flatten()), 0.0).total
    found = loss_and_gradient(found, z)
    assert found[0] == pytest.approx(expected[0], abs=2e-6) and torch.allclose(found[1], expected[1].float(), atol=2e-6)


# ----------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_scikit_learns(seed):
    draws = np.random.default_rng(seed)
    gold, shares = draws.random((60, 5)) < 0.3, draws.random((60, 5)).round(1).clip(0.1)
    found, answered = label_set_scores(gold, shares, 0.6), shares > 0.6
    assert found["micro_f1"] == pytest.approx(100 * sk.f1_score(gold, answered, average="micro"))
    assert found["macro_f1"] == pytest.approx(100 * sk.f1_score(gold, answered, average="macro"))
    assert found["row_f1"] == pytest.approx(100 * sk.f1_score(gold, answered, average="samples", zero_division=1))
    assert found["exact"] == pytest.approx(100 * sk.accuracy_score(gold, answered))
    assert found["micro_ap"] == pytest.approx(100 * sk.average_precision_score(gold, shares, average="micro"))
    assert found["macro_ap"] == pytest.approx(100 * sk.average_precision_score(gold, shares, average="macro"))
    below = np.nextafter(shares.min(), 0)
    for average in ("micro", "macro"):
        tried = {
            at: sk.f1_score(gold, shares > at, average=average, zero_division=0)
            for at in {below, *shares.ravel().tolist()}
        }
        assert found[f"best_{average}_f1"] == pytest.approx(100 * max(tried.values()))
        at = found[f"best_{average}_f1_thresh"]
        again = label_set_scores(gold, shares, at)[f"{average}_f1"]
        assert again == pytest.approx(found[f"best_{average}_f1"])
        assert at == pytest.approx(max(value for value, score in tried.items() if score > max(tried.values()) - 1e-9))


def test_labels_that_never_apply_and_rows_without_labels():
    gold = np.array([[1, 0, 0], [0, 0, 0]], dtype=bool)
    found = label_set_scores(gold, np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]]), 0.5)
    assert (found["micro_f1"], found["row_f1"], found["macro_ap"], found["exact"]) == (100, 100, 100, 100)
    assert found["macro_f1"] == pytest.approx(100 / 3)
    nothing = label_set_scores(np.zeros((2, 3), dtype=bool), np.full((2, 3), 0.2), 0.5)
    assert (nothing["micro_f1"], nothing["macro_ap"], nothing["exact"]) == (0, 0, 100)
    everything = np.ones((2, 3), dtype=bool)
    best, at = best_threshold(everything, np.full((2, 3), 0.2))
    assert best == pytest.approx(1) and at == pytest.approx(0.2) and at < 0.2, "all are above it"
    with pytest.raises(RoadError, match="no rows to score"):
        label_set_scores(np.zeros((0, 3), dtype=bool), np.zeros((0, 3)), 0.5)


def test_the_baseline_is_the_best_set_of_labels_for_every_row():
    draws = np.random.default_rng(0)
    gold = draws.random((200, 4)) < [0.7, 0.5, 0.2, 0.05]
    sets = [[bool(number >> i & 1) for i in range(4)] for number in range(16)]
    best = max(sk.f1_score(gold, np.tile(one, (200, 1)), average="micro", zero_division=0) for one in sets)
    assert label_set_baseline(gold)["micro_f1"] == pytest.approx(100 * best)


def test_a_label_is_answered_above_the_tasks_threshold():
    """In answers, scores and rows alike; at the threshold itself it is not."""
    z = np.log(np.array([0.31, 0.29, 0.6]) / (1 - np.array([0.31, 0.29, 0.6])))
    logits = [np.stack([np.zeros(3), z], axis=1)]
    example = Example("1", "text", None, ("doctor", "old"), None, "row")
    for threshold, labels, f1 in ((0.3, ("doctor", "old"), 1.0), (0.5, ("old",), 2 / 3), (0.7, (), 0.0)):
        task = task_from({"type": "multi_label", "labels": LABELS, "threshold": threshold}, "task")
        said = task.predict([example], [], logits)
        assert said[0].labels == labels
        assert task.score([example], said)["row_f1"] == pytest.approx(100 * f1)
        assert task.row_scores([example], said) == pytest.approx([f1])
    (even,) = TASK.predict([example], [], [np.zeros((3, 2))])
    assert even.labels == () and even.probabilities == dict.fromkeys(LABELS, 0.5)


# ------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("architecture", ["electra", "modernbert"])
def test_an_exported_head_is_a_multi_label_model_of_transformers(architecture, tmp_path):
    assert architecture in ARCHITECTURES
    model, tokenizer = fresh(architecture, {"words": TASK})
    export(model, model.state_dict(), tokenizer, tmp_path)
    folder, texts = tmp_path / "words", ["The mill is old .", "Ada lives in Oslo ."]
    examples = [Example(str(i), text, None, None, None, "row") for i, text in enumerate(texts)]
    said = Predictor.load(str(folder)).predict(examples)
    ask = pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None, device="cpu")
    for own, theirs in zip(said, ask(texts), strict=True):
        assert own.probabilities == pytest.approx({line["label"]: line["score"] for line in theirs}, abs=1e-5)
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert plain.config.problem_type == "multi_label_classification"
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    source = MemorySet.encode("rows", examples, TASK, tokenizer)
    with torch.no_grad():
        expected = plain(**inputs, labels=labels)
        found = model(collate(source, [0, 1], tokenizer.pad_token_id), "words")
    own = found.logits.view(2, 3, 2)
    assert torch.allclose(own[..., 1] - own[..., 0], expected.logits, atol=1e-5)
    assert supervised(found, labels.long().flatten()).total.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    (folder / TASK_FILE).unlink()
    assert read_task(folder).type == "multi_label" and read_task(folder).labels == LABELS, "as any such model of a hub"


WORDS = [
    "The doctor found a letter .",
    "An old letter .",
    "The old doctor .",
    "A mill .",
    "The doctor .",
    "The mill is old .",
]


def word_rows(folder: Path) -> Path:
    file = folder / "words.jsonl"
    lines = []
    for number in range(72):
        text = f"{WORDS[number % 6]} {WORDS[number * 5 // 7 % 6]}"
        found = [label for label in LABELS if f" {label} " in f" {text.lower()} "]
        lines.append(json.dumps({"text": text, "labels": found}) + "\n")
    file.write_text("".join(lines))
    return file


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, cache) -> list[str]:
    """Two runs on the words, the second with its labels in another order."""
    folder = tmp_path_factory.mktemp("multi_label")
    rows = word_rows(folder)
    for number, labels in enumerate((LABELS, LABELS[::-1])):
        config = words_config(
            rows, labels, cache, steps=60 - 55 * number, seed=number, output=str(folder / f"t{number}")
        )
        config["optimizer"] = {"type": "AdamW", "params": {"lr": 3e-3}}
        (folder / f"t{number}.json").write_text(json.dumps(config))
        assert train.main(["--deepspeed_config", str(folder / f"t{number}.json")]) == 0
    return [str(folder / f"t{number}") for number in range(2)]


def words_config(rows: Path, labels: list[str], cache: Path, **road) -> dict:
    task = {"words": {"type": "multi_label", "labels": labels, "max_length": 32}}
    datasets = {"said": {"task": "words", "train": str(rows), "dev": 0.25}}
    config = tiny_config(tasks=task, datasets=datasets, passes=1, cache=str(cache), **road)
    return {**config, "train_micro_batch_size_per_gpu": 24}


def test_a_run_learns_labels_and_reports_them(teachers, command):
    found = json.loads((Path(teachers[0]) / "results.json").read_text())["scores"]["said"]
    scores = found["scores"]
    assert found["headline"] == "micro_f1" and scores["micro_f1"] > found["baseline"]["micro_f1"] + 10
    assert scores["best_micro_f1"] >= scores["micro_f1"] and 0 <= scores["best_micro_f1_thresh"] < 1
    lines = [json.loads(line) for line in (Path(teachers[0]) / "predictions" / "said.jsonl").read_text().splitlines()]
    assert np.mean([line["score"] for line in lines]) * 100 == pytest.approx(scores["row_f1"])
    code, out, _ = command("predict", f"{teachers[0]}/model/words", "--text", "The old doctor found a letter .")
    assert code == 0 and out.splitlines()[0].split(maxsplit=1)[0] == "labels" and len(out.splitlines()) == 4


def test_labels_in_another_order_are_matched_by_name(teachers):
    """An ensemble's mean logits are those of both models, label by label."""
    examples = [Example(str(i), text, None, (), None, "row") for i, text in enumerate(WORDS)]
    folders = [f"{name}/model/words" for name in teachers]
    ensemble = Ensemble.of(folders)
    shares = [own.probabilities for own in ensemble.task.predict(examples, *ensemble.logits(examples))]
    alone = [Predictor.load(folder).predict(examples) for folder in folders]
    for share, *each in zip(shares, *alone, strict=True):
        for name in LABELS:
            z = np.mean([np.log(own.probabilities[name] / (1 - own.probabilities[name])) for own in each])
            assert share[name] == pytest.approx(1 / (1 + np.exp(-z)), abs=1e-5)


@pytest.mark.parametrize(("name", "source"), [("kd", "online"), ("weighted_kd", "cached")])
def test_the_first_step_of_a_student_is_that_of_plain_pytorch(name, source, teachers, tmp_path, cache, command):
    block = {"objective": name, "source": source, "temperature": 3.0, "weight": 0.6, "dtype": "float32"}
    block |= {"teachers": {"said": teachers}, "cache": str(tmp_path / "targets")}
    rows = Path(teachers[0]).parent / "words.jsonl"
    config = words_config(
        rows, LABELS, cache, steps=1, seed=5, distill=block, output=str(tmp_path / "run"), log_every=1
    )
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config))
    if source == "cached":
        teach(str(file), [])
    code, _, err = command("check", file)
    assert code == 0, err
    assert train.main(["--deepspeed_config", str(file)]) == 0
    line = next(line for line in records(tmp_path / "run") if "loss" in line)

    road, _ = load_config(file)
    tokenizer, tasks = load_tokenizer(road.model), heads(road)
    given = Rows.load(road.datasets, tasks.by_dataset(), tokenizer, cache).train["said"]
    passes, _ = plan(road, config["train_batch_size"], {"said": given.lengths})
    initial = build_model(road.model, tasks, tokenizer, dropout=0.0, seed=5)
    export(initial, initial.state_dict(), tokenizer, tmp_path / "initial")
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "initial" / "words")
    asked = [AutoModelForSequenceClassification.from_pretrained(f"{one}/model/words") for one in teachers]
    losses = []
    for taken in passes.draw(0):
        texts = [given.example(given[row].example) for row in taken.rows]
        inputs = tokenizer([e.text_a for e in texts], return_tensors="pt", padding=True)
        y = torch.tensor([[float(label in e.label) for label in LABELS] for e in texts])
        z = student(**inputs).logits
        with torch.no_grad():
            theirs = torch.stack([one.eval()(**inputs).logits for one in asked])
        theirs[1] = theirs[1].flip(-1)
        target = theirs.mean(0)
        if name == "weighted_kd":
            right = (theirs > 0) == y.bool()
            wrong = (~right).sum(0)
            scale = torch.where(right, (2 - 0.75 * wrong) / (2 - wrong).clamp(min=1), 0.75)
            target = torch.where(wrong == 2, theirs, scale * theirs).mean(0)
            assert (wrong == 1).float().mean() > 0, "teachers that agree prove nothing"
        hard = F.binary_cross_entropy_with_logits(z, y)
        losses.append(0.4 * hard + 0.6 * 9 * bernoulli_kl(target, z, 3.0).mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_a_teacher_of_other_labels_and_one_label_alone_are_refused(teachers, tmp_path, cache, command):
    rows = Path(teachers[0]).parent / "words.jsonl"
    block = {"objective": "kd", "teachers": {"said": [teachers[0]]}}
    config = words_config(rows, [*LABELS, "mill"], cache, distill=block, steps=1, output=str(tmp_path / "run"))
    (tmp_path / "run.json").write_text(json.dumps(config))
    said = error_of(command("check", tmp_path / "run.json"))
    assert "tells apart ['doctor', 'letter', 'old'], the data set's task ['doctor', 'letter', 'old', 'mill']" in said
    config["road"]["tasks"]["words"]["labels"] = ["old"]
    (tmp_path / "run.json").write_text(json.dumps(config))
    said = error_of(command("check", tmp_path / "run.json"))
    assert "road.tasks.words.labels: expected two or more different label names, got ['old']" in said
