"""A number for a text or a pair."""

from typing import Any, ClassVar, Literal

import numpy as np

from road_ds.common.errors import RoadError
from road_ds.tasks import metrics
from road_ds.tasks.labels import lone
from road_ds.tasks.text import TextTask

FLOAT32 = float(np.finfo(np.float32).max)


class Regression(TextTask):
    """A number for a text or a pair: one class, squared error."""

    type: Literal["regression"]
    headline: ClassVar[str] = "pearson"
    row_metric: ClassVar[str] = "squared_error"
    continuous: ClassVar[bool] = True
    errors: ClassVar[bool] = True

    def head_settings(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def label(self, example):
        if example.label is None:
            return float("nan")
        label = lone(example)
        try:
            value = float(label)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise RoadError(f"{example.where}: label {example.label!r} is not a number: a regression needs one")
        if abs(value) > FLOAT32:
            raise RoadError(f"{example.where}: label {example.label!r} is beyond {FLOAT32:.1e}: scale such labels down")
        return value

    def predict(self, examples, features, logits):
        return [float(scores[0, 0]) for scores in logits]

    def score(self, examples, predictions):
        return metrics.regression_scores([self.label(e) for e in examples], predictions)

    def row_scores(self, examples, predictions):
        return [(self.label(e) - p) ** 2 for e, p in zip(examples, predictions, strict=True)]

    def baseline(self, examples):
        return metrics.regression_baseline([self.label(e) for e in examples])

    def describe(self, prediction):
        return {"value": round(prediction, 4)}

    def golds(self, example):
        return [self.label(example)]

    def matched(self, example, said):
        return [(self.label(example), said["value"])]
