"""Several models as one: the mean of their logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from road_ds.common.errors import RoadError
from road_ds.common.hub import head_folder, model_folder
from road_ds.config.road import RoadConfig
from road_ds.data.batch import Feature
from road_ds.data.readers import Example, distinct
from road_ds.data.sources import Source, read_part
from road_ds.data.tokenizer import tokenizer_hash
from road_ds.models.export import read_task
from road_ds.models.predictor import Predictor
from road_ds.tasks.base import Task
from road_ds.tasks.evaluation import Evaluated, score
from road_ds.tasks.labels import label_names, order_of, reordered
from road_ds.tasks.registry import heads


@dataclass(frozen=True)
class Ensemble:
    """Models of one task by name, read one after the other, so that only one is in memory. One model is itself.

    Labels are matched by name; the first model's order and settings hold.
    """

    names: tuple[str, ...]
    task: Task

    @classmethod
    def of(cls, names: Sequence[str], head: str = "") -> "Ensemble":
        """The ensemble of model folders, hub names, or run folders, which then stand for their model called `head`.

        RoadError where their tasks, labels or windows differ.
        """
        if twice := [name for name in names if names.count(name) > 1]:
            raise RoadError(f"{twice[0]} is given twice: the mean is over different models")
        folders = [head_folder(name, head) for name in names]
        first, *others = tasks = [read_task(model_folder(folder)) for folder in folders]
        for name, task in zip(names[1:], others, strict=True):
            _check_alike(names[0], first, name, task)
            _check_windows(names[0], first, name, task)
        return cls(tuple(folders), tasks[0])

    def evaluate(self, examples: Sequence[Example], batch_size: int = 64, metric: str | None = None) -> Evaluated:
        """The task's scores of the mean logits on examples with labels; `metric`: the data set's own, if it has one."""
        for example in distinct(examples):
            if not self.task.labelled(example):
                what, setting = self.task.lacking(example)
                raise RoadError(f"{example.where}: the row has nothing to score against, no {what}: set {setting}")
        return score(self.task, examples, *self.logits(examples, batch_size), metric)

    def logits(self, examples: Sequence[Example], batch_size: int = 64) -> tuple[list[Feature], list[np.ndarray]]:
        """The first model's features, and the mean logits of each, [rows, classes]."""
        features: list[Feature] = []
        total: list[np.ndarray] = []
        tokenizer = ""
        for name in self.names:
            member = Predictor.load(name)
            own = tokenizer_hash(member.tokenizer)
            encoded, logits = member.logits(examples, batch_size)
            order = order_of(label_names(member.task), label_names(self.task))
            if not total:
                features, total, tokenizer = encoded, [value.astype(np.float64) for value in logits], own
                continue
            if self.task.over_tokens and own != tokenizer:
                raise RoadError(
                    f"{name} has another tokenizer than {self.names[0]}: for spans, whose classes are tokens, the "
                    "models of an ensemble must have the same"
                )
            for sum_, first, feature, value in zip(total, features, encoded, logits, strict=True):
                value = self.task.aligned(first, feature, value)
                sum_ += reordered(value, order, self.task.numbers_per_label)
        return features, [(value / len(self.names)).astype(np.float32) for value in total]


def evaluate_run(names: Sequence[str], config: RoadConfig, batch_size: int = 64) -> dict[str, Evaluated]:
    """The scores of an ensemble on each dev part of a run's data sets. RoadError where a model suits none of its tasks."""
    results, tasks = {}, heads(config)
    for dataset, spec in config.datasets.items():
        if spec.dev is not None:
            ensemble = Ensemble.of(names, tasks.of[dataset])
            asked = tasks.task(dataset)
            if label_names(asked) == []:  # from the rows of the run, which the model has kept
                asked = asked.model_copy(update={"labels": label_names(ensemble.task)})
            _check_alike(f"datasets.{dataset}", asked, names[0], ensemble.task)
            metric = Source.of(dataset, "dev", spec).metric
            results[dataset] = ensemble.evaluate(read_part(dataset, "dev", spec).examples, batch_size, metric)
    if not results:
        raise RoadError(f"no data set of the run has a dev part to be scored on: {', '.join(config.datasets)}")
    return results


def _check_alike(first: str, task: Task, name: str, other: Task) -> None:
    if task.type != other.type:
        raise RoadError(f"{name} is a model for {other.type}, {first} one for {task.type}: they do not go together")
    own, theirs = label_names(task), label_names(other)
    if sorted(own or ()) != sorted(theirs or ()):
        raise RoadError(f"{name} tells apart {theirs}, {first} {own}: they must have the same label names")


def _check_windows(first: str, task: Task, name: str, other: Task) -> None:
    for key in ("max_length", "doc_stride", "max_question_length") if task.over_tokens else ():
        if getattr(task, key) != getattr(other, key):
            raise RoadError(
                f"{name} cuts contexts with {key} {getattr(other, key)}, {first} with {getattr(task, key)}: "
                "their windows, and so their logits, do not match"
            )
