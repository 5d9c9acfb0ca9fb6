"""docs/architecture.md kept true: what the package does not know is added from outside, each one class or function and one line."""

import json
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
from runs import records, tiny_config
from torch.nn import functional as F

from road_ds import __main__, train
from road_ds.commands import arguments
from road_ds.config import DatasetSpec
from road_ds.data.formats import FORMATS
from road_ds.data.publishers import SHAPES
from road_ds.data.readers import read
from road_ds.distillation import (
    METHODS,
    OBJECTIVES,
    SOURCES,
    Comparison,
    LayerMethod,
    Loss,
    Objective,
    Taught,
    Teaching,
    supervised,
)
from road_ds.engine import parts
from road_ds.models import Shape, States, Wanted
from road_ds.tasks import TASKS, TextTask


class Says(TextTask):
    """Whether a text has a word in it; its rows need no label."""

    type: Literal["says"]
    word: str
    headline: ClassVar[str] = "told_apart"
    row_metric: ClassVar[str] = "told_apart"

    def head_settings(self):
        return {"num_labels": 2}

    def labelled(self, example):
        return True

    def label(self, example):
        return int(self.word in example.text_a.split())

    def predict(self, examples, features, logits):
        return [int(rows[0].argmax()) for rows in logits]

    def row_scores(self, examples, predictions):
        return [float(self.label(e) == p) for e, p in zip(examples, predictions, strict=True)]

    def score(self, examples, predictions):
        right = self.row_scores(examples, predictions)
        return {"told_apart": 100 * sum(right) / len(right)}

    def baseline(self, examples):
        return {"told_apart": max(self.score(examples, [answer] * len(examples))["told_apart"] for answer in (0, 1))}

    def describe(self, prediction):
        return {"says": bool(prediction)}


class Stubborn(Objective):
    """Cross-entropy with one and the same class, whatever the label says."""

    objective: Literal["stubborn"]
    answer: int = 0

    def __call__(self, outputs, teaching, batch, progress):
        loss = F.cross_entropy(outputs.logits.float(), torch.full_like(batch.labels, self.answer))
        return Loss(loss, supervised(outputs, batch.labels).total.detach(), loss.detach())


class Mimic(Taught):
    """Squared error to the teachers' mean logits."""

    objective: Literal["mimic"]

    def hard_share(self, progress):
        return 0.0

    def of_classes(self, outputs, teachers, labels, progress):
        loss = F.mse_loss(outputs.logits.float(), teachers.mean(0))
        return Loss(loss, supervised(outputs, labels).total.detach(), loss.detach())

    def kernel(self, outputs, teachers, labels, progress):
        return None


class Shorter(LayerMethod):
    """The difference in length of the last layers' vectors, a factor on it trained."""

    method: Literal["shorter"]

    def compare(self, student, teacher, seed):
        own, theirs = (Wanted((shape.layers,), first=True) for shape in (student, teacher))
        return Lengths(student, teacher, own, theirs)


class Lengths(Comparison):
    def __init__(self, *given):
        super().__init__(*given)
        self.factor = torch.nn.Linear(1, 1, bias=False)

    def forward(self, student, teachers, mask, step):
        (own,), (theirs,) = student.hidden.values(), teachers.hidden.values()
        return (self.factor(own.norm(dim=-1, keepdim=True)).squeeze(-1) - theirs.norm(dim=-1)).square().mean()


class Oracle:
    """A teacher that has one answer for every row, and one state of one layer if asked to."""

    def __init__(self, layers=False):
        self.layers = layers

    identity: ClassVar = {"inference": ["oracle"]}

    def compare(self, method, student, seed):
        return method.compare(student, Shape(1, 1, 1), seed)

    def __call__(self, batch):
        states = States({1: torch.full((1, len(batch.labels), 1), 5.0)})
        return Teaching(
            torch.tensor([-1.0, 2.0, -1.0]).expand(1, len(batch.labels), 3), states if self.layers else None
        )


def test_a_task_from_outside_is_trained_scored_and_asked(config_file, tmp_path, monkeypatch, command):
    monkeypatch.setitem(TASKS, "says", Says)
    rows = {"train": "sample:paraphrase.train.csv", "dev": "sample:paraphrase.dev.csv", "columns": {"text_a": "first"}}
    config = tiny_config(
        tasks={"day": {"type": "says", "word": "On"}}, datasets={"first": {"task": "day", **rows}}, steps=40
    )
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 3e-3}}
    file = config_file(config)
    assert command("check", file)[0] == 0
    assert train.main(["--deepspeed_config", str(file)]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["scores"]["first"]
    assert found["headline"] == "told_apart"
    assert found["scores"]["told_apart"] > found["baseline"]["told_apart"] + 20

    for text, answer in (("On Monday the doctor found a letter.", True), ("The old doctor found a letter.", False)):
        code, out, _ = command("predict", tmp_path / "run" / "model" / "day", "--text", text)
        assert code == 0 and out.split() == ["says", str(answer)]


@pytest.mark.parametrize("answer", [0, 2])
def test_an_objective_from_outside_decides_what_is_learned(answer, config_file, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "stubborn", Stubborn)
    config = tiny_config(use=["inference"], distill={"objective": "stubborn", "answer": answer}, log_every=1)
    label = config["road"]["tasks"]["inference"]["labels"][answer]
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert lines[-1]["loss"] < 0.4 < 1 < lines[-1]["hard/inference"]
    assert all(line["soft/inference"] == pytest.approx(line["loss"]) for line in lines)
    said = (tmp_path / "run" / "predictions" / "inference.jsonl").read_text().splitlines()
    assert {json.loads(line)["prediction"]["label"] for line in said} == {label}


def test_a_teacher_from_outside_is_learned_from(config_file, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mimic", Mimic)
    monkeypatch.setitem(SOURCES, "oracle", lambda objective, pupils, ranks, cache, config: Oracle())
    block = {"objective": "mimic", "source": "oracle", "teachers": {"inference": ["oracle"]}}
    config = tiny_config(use=["inference"], distill=block, steps=10)
    label = config["road"]["tasks"]["inference"]["labels"][1]
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert lines[-1]["soft/inference"] < lines[0]["soft/inference"] / 4
    assert lines[-1]["soft_share/inference"] == pytest.approx(1)
    said = (tmp_path / "run" / "predictions" / "inference.jsonl").read_text().splitlines()
    assert {json.loads(line)["prediction"]["label"] for line in said} == {label}
    assert json.loads((tmp_path / "run" / "results.json").read_text())["teachers"] == Oracle.identity


def test_a_method_on_layers_from_outside_is_trained(config_file, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "shorter", Shorter)
    monkeypatch.setattr(parts, "open_teachers", lambda *rows, **places: Oracle(layers=True))
    block = {"objective": "layers", "teachers": {"inference": ["oracle"]}, "layers": {"method": "shorter"}}
    config = tiny_config(use=["inference"], distill=block, steps=10)
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert lines[-1]["layers/inference"] < lines[0]["layers/inference"] / 2


def verses(source, spec):
    """A format: lines, each with what stands before and behind its colon."""
    for number, line in enumerate(Path(source).read_text().splitlines(), 1):
        yield f":{number}", dict(zip(("who", "what"), line.split(": "), strict=True))


def spoken(row, spec):
    """A layout: the label is the one who speaks."""
    yield "", {"text": row["what"], "label": row["who"]}


def test_a_format_and_a_layout_from_outside_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "verses", verses)
    monkeypatch.setitem(SHAPES, "spoken", spoken)
    (tmp_path / "play.txt").write_text("Anna: Who is there?\nBert: It is I.\n")
    found = read(str(tmp_path / "play.txt"), DatasetSpec(task="who", format="verses", shape="spoken")).examples
    assert [(e.text_a, e.label) for e in found] == [("Who is there?", "Anna"), ("It is I.", "Bert")]


class Greet:
    """A command."""

    @staticmethod
    def add(commands):
        arguments.command(commands, "greet", Greet.run).add_argument("name")

    @staticmethod
    def run(options):
        """Says hello."""
        print(f"Hello, {options.name}")


def test_a_command_from_outside_runs(monkeypatch, command):
    monkeypatch.setattr(__main__, "COMMANDS", (*__main__.COMMANDS, Greet))
    assert command("greet", "Anna") == (0, "Hello, Anna\n", "")
