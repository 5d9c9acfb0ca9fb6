"""Objectives without a model as teacher: label smoothing, a hand-made teacher."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from road_kernels import kd_loss

from road_ds.data.batch import IGNORED
from road_ds.distillation.objective import Fused, Loss, Objective, absent, masked, supervised


class LabelSmoothing(Objective):
    """Cross-entropy with (1 - smoothing) onehot + smoothing uniform over a row's classes; squared error stays."""

    objective: Literal["label_smoothing"]
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def hard_share(self, progress):
        return 1 - self.smoothing

    def __call__(self, outputs, teaching, batch, progress):
        hard = supervised(outputs, batch.labels)
        if batch.labels.is_floating_point():
            return hard
        shares = masked(outputs).log_softmax(-1)
        outside = absent(outputs)
        sums = (shares if outside is None else shares.masked_fill(outside, 0.0)).sum(1)
        rows = -sums / (shares.shape[1] if outputs.lengths is None else outputs.lengths)
        kept = batch.labels != IGNORED
        soft = rows.masked_fill(~kept, 0.0).sum() / kept.sum().clamp(min=1)  # picking rows would wait for the device
        return Loss((1 - self.smoothing) * hard.total + self.smoothing * soft, hard.total.detach(), soft.detach())


class TeacherFree(Fused):
    """KD from a hand-made teacher: `correct` on the label, the rest evenly over a row's other classes (Tf-KD)."""

    objective: Literal["teacher_free"]
    correct: Annotated[float, Field(gt=0, lt=1)] = 0.99
    temperature: Annotated[float, Field(gt=0)] = 20.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    kl_scale: Literal["t2"] | Annotated[float, Field(gt=0)] = "t2"

    def hard_share(self, progress):
        return 1 - self.weight

    def __call__(self, outputs, teaching, batch, progress):
        if batch.labels.is_floating_point():
            return supervised(outputs, batch.labels)
        found = kd_loss(outputs.logits, labels=batch.labels, **self.kernel(outputs, None, batch.labels, progress))
        return self.loss(found, outputs, batch.labels, progress)

    def kernel(self, outputs, teachers, labels, progress) -> dict[str, Any]:
        logits = outputs.logits
        classes = outputs.lengths if outputs.lengths is not None else labels.new_full(labels.shape, logits.shape[1])
        others = torch.log((1 - self.correct) / (classes - 1).clamp(min=1).float())
        teacher = others[:, None].expand(logits.shape).clone()
        teacher.scatter_(1, labels.clamp(min=0)[:, None], math.log(self.correct))
        return {
            "teacher": teacher,
            "temperature": self.temperature,
            "weight": self.weight,
            "kl_scale": self.kl_scale,
            "lengths": outputs.lengths,
            "ignore_index": IGNORED,
            "impl": self.kernels,
        }
