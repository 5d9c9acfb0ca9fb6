"""Any number of a list of labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from road_ds.common.errors import RoadError
from road_ds.data.batch import IGNORED
from road_ds.tasks.base import NONE
from road_ds.tasks.label_sets import label_set_baseline, label_set_scores, row_f1
from road_ds.tasks.labels import LabelNames, beside, head_labels, position
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.text import TextTask


@dataclass(frozen=True)
class LabelSet:
    """labels: the names of those above the threshold, in the head's order; probabilities: of every label, by name."""

    labels: tuple[str, ...]
    probabilities: Mapping[str, float]


class MultiLabel(TextTask):
    """Any number of a list of labels for a text or a pair, each by itself (sigmoid). Labels are compared by name.

    Rows of logits: one per label, of two classes, "does not apply" and "applies": (0, z), so that their cross-entropy is the
    binary one of z, and KL at a temperature that of the Bernoulli distributions of z / T.
    """

    type: Literal["multi_label"]
    labels: LabelNames = []
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5

    headline: ClassVar[str] = "micro_f1"
    row_metric: ClassVar[str] = "row_f1"
    numbers_per_label: ClassVar[int] = 2

    @property
    def rows_per_feature(self):
        return len(self.labels)

    def head_settings(self) -> dict[str, Any]:
        return {**head_labels(self.labels), "problem_type": "multi_label_classification"}

    def encoding(self):
        return self.model_dump(exclude={"threshold"})

    def targets(self, example):
        if example.label is None:
            return [IGNORED] * len(self.labels)
        if not isinstance(example.label, tuple | str):
            raise RoadError(f"{example.where}: label {example.label!r} is a number: expected the names of labels")
        names = example.label if isinstance(example.label, tuple) else (example.label,)
        applying = {
            position(name, self.labels, example.where, " (several in one text: set label_separator)") for name in names
        }
        return [int(i in applying) for i in range(len(self.labels))]

    def outputs(self, head, batch):
        return Outputs(torch.stack([torch.zeros_like(head.logits), head.logits], dim=-1).flatten(0, 1))

    def predict(self, examples, features, logits):
        results = []
        for rows in logits:
            scores = rows.astype(np.float64)
            shares = dict(zip(self.labels, (1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))).tolist(), strict=True))
            results.append(LabelSet(tuple(name for name, share in shares.items() if share > self.threshold), shares))
        return results

    def score(self, examples, predictions):
        shares = np.array([[p.probabilities[name] for name in self.labels] for p in predictions])
        return label_set_scores(self._gold(examples), shares, self.threshold)

    def row_scores(self, examples, predictions):
        return row_f1(self._gold(examples), np.array([[name in p.labels for name in self.labels] for p in predictions]))

    def baseline(self, examples):
        return label_set_baseline(self._gold(examples))

    def _gold(self, examples) -> np.ndarray:
        """[rows, labels] whether a label applies."""
        return np.array([self.targets(example) for example in examples], dtype=bool)

    def describe(self, prediction):
        return beside({"labels": list(prediction.labels)}, prediction.probabilities)

    def golds(self, example):
        return [name for name, applies in zip(self.labels, self.targets(example), strict=True) if applies]

    def matched(self, example, said):
        right, given = self.golds(example), said["labels"]
        pairs = [(name, name if name in given else NONE) for name in right]
        return pairs + [(NONE, name) for name in given if name not in right]

    def certainty(self, said):
        """How far the nearest label's probability is from the threshold."""
        return min(abs(value - self.threshold) for value in said.values() if isinstance(value, float))
