"""One of a list of labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from road_ds.data.batch import IGNORED
from road_ds.tasks import metrics
from road_ds.tasks.labels import LabelNames, beside, head_labels, lone, position
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.text import TextTask


@dataclass(frozen=True)
class Classified:
    """label: the name of the likeliest class; probabilities: of every class, by name."""

    label: str
    probabilities: Mapping[str, float]


class Classification(TextTask):
    """One of a list of labels for a text or a pair. Labels are compared by name, their order is the head's."""

    type: Literal["classification"]
    labels: LabelNames = []
    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = None  # by label
    headline: ClassVar[str] = "accuracy"
    row_metric: ClassVar[str] = "accuracy"

    @model_validator(mode="after")
    def a_weight_for_each_label(self):
        weights = self.class_weights
        if isinstance(weights, dict) and not self.labels:
            raise ValueError(f'class_weights: got {weights} without labels: name the labels, too, or set "balanced"')
        if isinstance(weights, dict) and ({*weights} != {*self.labels} or not any(weights.values())):
            raise ValueError(
                f'class_weights: got {weights}; expected "balanced", or a number for each of {", ".join(self.labels)}, not all 0'
            )
        return self

    def encoding(self):
        return {key: value for key, value in super().encoding().items() if key != "class_weights"}

    def counting(self, labels):
        """Balanced weights: rows / (labels x rows of the label), whose mean over the rows is 1; a label without rows has 1."""
        if self.class_weights != "balanced":
            return self
        found = labels()
        counts = {label: found[number] for number, label in enumerate(self.labels)}
        there = [count for count in counts.values() if count]
        shares = {label: count * len(there) / sum(there) for label, count in counts.items()}
        weights = {label: round(1 / share, 6) if share else 1.0 for label, share in shares.items()}
        return self.model_copy(update={"class_weights": weights})

    def draw(self, batch, key, lengths):
        if self.class_weights is None:
            return batch
        assert isinstance(self.class_weights, dict), "counting() comes first"
        weights = torch.tensor([self.class_weights[label] for label in self.labels])
        return replace(batch, weights=weights[batch.labels.clamp(min=0)])

    def outputs(self, head, batch):
        return Outputs(head.logits, weights=batch.weights)

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
        return beside({"label": prediction.label}, prediction.probabilities)

    def golds(self, example):
        return [str(example.label)]

    def matched(self, example, said):
        return [(str(example.label), said["label"])]

    def certainty(self, said):
        return max(value for name, value in said.items() if name != "label")
