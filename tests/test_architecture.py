"""docs/architecture.md kept true: a task and an objective that the package does not know, each one class and one line."""

import json
from typing import ClassVar, Literal

import pytest
import torch
from runs import records, tiny_config
from torch.nn import functional as F

from road_ds import train
from road_ds.distillation.objective import Loss, Objective, supervised
from road_ds.distillation.registry import OBJECTIVES
from road_ds.tasks.registry import TASKS
from road_ds.tasks.text import TextTask


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
