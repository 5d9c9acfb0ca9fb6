"""Objectives whose target moves with the run: teacher annealing (BAM), Annealing-KD."""

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from road_kernels import combine_teachers, kd_loss

from road_ds.data.batch import IGNORED
from road_ds.distillation.objective import Loss, Taught, absent, supervised


class TeacherAnnealing(Taught):
    """Cross-entropy with s onehot + (1 - s) softmax(mean of the teachers), s from 0 to 1 over the run (BAM)."""

    objective: Literal["teacher_annealing"]

    def hard_share(self, progress):
        return progress

    def of_classes(self, outputs, teachers, labels, progress):
        found = kd_loss(outputs.logits, labels=labels, **self.kernel(outputs, teachers, labels, progress))
        # KL to the teacher is the cross-entropy less the teacher's own entropy, which has no gradient.
        target = combine_teachers(teachers.float(), lengths=outputs.lengths, impl=self.kernels)
        entropy = torch.special.entr(target.softmax(-1)).sum(-1).masked_fill(labels == IGNORED, 0.0)
        counted = (labels != IGNORED).sum().clamp(min=1)
        loss = self.loss(found, outputs, labels, progress)
        return replace(loss, total=loss.total + (1 - progress) * entropy.sum() / counted)

    def kernel(self, outputs, teachers, labels, progress) -> dict[str, Any]:
        return {
            "teacher": teachers,
            "temperature": 1.0,
            "weight": 1 - progress,
            "kl_scale": 1,
            "lengths": outputs.lengths,
            "ignore_index": IGNORED,
            "impl": self.kernels,
        }


class AnnealingKD(Taught):
    """Phase 1 of Annealing-KD: squared error to phi x the teachers' logits, phi = 1/T, 2/T, ..., 1 over the run.

    T is `max_temperature`, each phi lasts 1/T of the steps. Phase 2 is a supervised run on what this one exports. The
    mean is over a row's classes, then over rows.
    """

    objective: Literal["annealing_kd"]
    max_temperature: Annotated[int, Field(ge=1)] = 7

    def phi(self, progress: float) -> float:
        """The factor on the teachers' logits at a progress in [0, 1]."""
        return min(int(progress * self.max_temperature + 1e-9) + 1, self.max_temperature) / self.max_temperature

    def hard_share(self, progress):
        return 0.0

    def of_classes(self, outputs, teachers, labels, progress):
        total = self.of_unlabelled(outputs, teachers, progress)
        return Loss(total, supervised(outputs, labels).total.detach(), total.detach())

    def of_unlabelled(self, outputs, teachers, progress):
        error = outputs.logits.float() - self.phi(progress) * teachers.float().mean(0)
        outside = absent(outputs)
        squares = error.square() if outside is None else error.masked_fill(outside, 0.0).square()
        classes = error.shape[1] if outputs.lengths is None else outputs.lengths
        return (squares.sum(1) / classes).mean()

    def of_values(self, outputs, teachers, labels, progress):
        return self.of_classes(outputs, teachers, labels, progress)

    def kernel(self, outputs, teachers, labels, progress):
        return None
