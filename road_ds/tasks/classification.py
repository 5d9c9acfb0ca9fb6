"""One of a list of labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator

from road_ds.common.errors import RoadError, misspelt
from road_ds.data.batch import IGNORED
from road_ds.tasks import metrics
from road_ds.tasks.text import TextTask


@dataclass(frozen=True)
class Classified:
    """label: the name of the likeliest class; probabilities: of every class, by name."""

    label: str
    probabilities: Mapping[str, float]


class Classification(TextTask):
    """One of a list of labels for a text or a pair. Labels are compared by name, their order is the head's."""

    type: Literal["classification"]
    labels: list[str]
    headline: ClassVar[str] = "accuracy"
    row_metric: ClassVar[str] = "accuracy"

    @field_validator("labels")
    @classmethod
    def at_least_two(cls, labels: list[str]) -> list[str]:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"expected two or more different label names, got {labels}")
        return labels

    def head_settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def label(self, example):
        if example.label is None:
            return IGNORED
        try:
            return self.labels.index(str(example.label))
        except ValueError:
            raise RoadError(
                f"{example.where}: label {example.label!r} is none of the task's labels ({', '.join(self.labels)})"
                f"{misspelt(str(example.label), self.labels)}; rename it with label_map, or leave such rows out with drop_labels"
            ) from None

    def predict(self, examples, features, logits):
        results = []
        for scores in logits:
            row = np.exp(scores[0].astype(np.float64) - scores[0].max())
            share = dict(zip(self.labels, (row / row.sum()).tolist(), strict=True))
            results.append(Classified(max(share, key=share.__getitem__), share))
        return results

    def score(self, examples, predictions):
        golds = [self.label(e) for e in examples]
        return metrics.classification_scores(golds, [self.labels.index(p.label) for p in predictions], self.labels)

    def row_scores(self, examples, predictions):
        return [float(self.labels[self.label(e)] == p.label) for e, p in zip(examples, predictions, strict=True)]

    def baseline(self, examples):
        return metrics.classification_baseline([self.label(e) for e in examples], self.labels)

    def describe(self, prediction):
        return {"label": prediction.label, **{k: round(v, 4) for k, v in prediction.probabilities.items()}}

    def golds(self, example):
        return [str(example.label)]

    def matched(self, example, said):
        return [(str(example.label), said["label"])]

    def certainty(self, said):
        return max(value for name, value in said.items() if name != "label")
