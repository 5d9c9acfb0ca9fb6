"""One of a list of labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from road_ds.data.batch import IGNORED
from road_ds.tasks import metrics
from road_ds.tasks.labels import LabelNames, head_labels, lone, position
from road_ds.tasks.text import TextTask


@dataclass(frozen=True)
class Classified:
    """label: the name of the likeliest class; probabilities: of every class, by name."""

    label: str
    probabilities: Mapping[str, float]


class Classification(TextTask):
    """One of a list of labels for a text or a pair. Labels are compared by name, their order is the head's."""

    type: Literal["classification"]
    labels: LabelNames
    headline: ClassVar[str] = "accuracy"
    row_metric: ClassVar[str] = "accuracy"

    def head_settings(self) -> dict[str, Any]:
        return {**head_labels(self.labels), "problem_type": "single_label_classification"}

    def label(self, example):
        if example.label is None:
            return IGNORED
        return position(lone(example), self.labels, example.where)

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
