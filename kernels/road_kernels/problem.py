"""A distillation loss to be computed: checked, detached, and with the factors of its two terms worked out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import plan
from .plan import Layout


class Problem(NamedTuple):
    """What both implementations take, in the order of the operators' schema.

    student: [rows, classes]. teachers: [rows, classes] each, without a gradient.
    labels, lengths, row_weight: [rows]; teacher_weights: [teachers, rows]; each None where it is not given.
    hard_scale: what multiplies the cross-entropy. soft_scale: what multiplies the KL at `temperature`.
    """

    student: Tensor
    teachers: list[Tensor]
    labels: Tensor | None
    lengths: Tensor | None
    teacher_weights: Tensor | None
    row_weight: Tensor | None
    temperature: float
    hard_scale: float
    soft_scale: float
    wrong_scale: float | None
    ignore_index: int
    reduction: str

    @classmethod
    def of(
        cls, student: Tensor, teachers: list[Tensor], judges: int, labels: Tensor | None, lengths: Tensor | None,
        teacher_weights: Tensor | None, row_weight: Tensor | None, temperature: float, weight: float, factor: float,
        wrong_scale: float | None, ignore_index: int, reduction: str,
    ) -> Problem:  # fmt: skip
        """The problem of checked arguments. judges: the number of teachers; factor: of the KL, before `weight`."""
        return cls(
            student,
            teachers,
            labels,
            lengths,
            None if teacher_weights is None else teacher_weights.detach(),
            None if row_weight is None else row_weight.detach(),
            float(temperature),
            1.0 - weight,
            weight * factor,
            judging_scale(wrong_scale, judges),
            ignore_index,
            reduction,
        )

    def part(self, rows: slice, student: Tensor, teachers: list[Tensor], reduction: str) -> Problem:
        """The problem of some of the rows, whose logits are given."""
        return self._replace(
            student=student,
            teachers=teachers,
            labels=cut(self.labels, rows),
            lengths=cut(self.lengths, rows),
            teacher_weights=None if self.teacher_weights is None else self.teacher_weights[:, rows],
            row_weight=cut(self.row_weight, rows),
            reduction=reduction,
        ).dense()

    def dense(self) -> Problem:
        """The same with contiguous numbers per row: too few bytes to give them strides."""
        rows = (self.labels, self.lengths, self.teacher_weights, self.row_weight)
        if all([numbers is None or numbers.is_contiguous() for numbers in rows]):
            return self
        labels, lengths, teacher_weights, row_weight = (
            None if numbers is None else numbers.contiguous() for numbers in rows
        )
        return self._replace(labels=labels, lengths=lengths, teacher_weights=teacher_weights, row_weight=row_weight)

    def signature(self) -> tuple:
        """What a Kind is made of: all of a problem that its kernels are chosen and compiled for, as plain tuples, soon made."""
        return (
            self.student.device,
            plan.signature(self.student),
            tuple(map(plan.signature, self.teachers)),
            plan.signature(self.labels),
            plan.signature(self.lengths),
            plan.signature(self.teacher_weights),
            plan.signature(self.row_weight),
            plan.whole_power(self.temperature),
            self.wrong_scale is not None,
            self.ignore_index,
            self.reduction,
        )


class Kind(NamedTuple):
    """What the kernels of a problem are chosen and compiled for: all but values, and numbers that are floats to them."""

    device: torch.device
    student: Layout
    teachers: tuple[Layout, ...]
    labels: Layout | None
    lengths: Layout | None
    teacher_weights: Layout | None
    row_weight: Layout | None
    power: int
    judged: bool
    ignore_index: int
    reduction: str

    @classmethod
    def of(cls, signature: tuple) -> Kind:
        device, student, teachers, *rest = signature
        rest[:4] = [None if one is None else Layout(*one) for one in rest[:4]]
        return cls(device, Layout(*student), tuple(Layout(*one) for one in teachers), *rest)

    def kept(self) -> int:
        """Numbers of each row that the gradient needs: 5 statistics and, with wrong_scale, Algorithm 2's weight of each teacher."""
        return plan.STATISTICS + (len(self.teachers) if self.judged else 0)

    def saved(self) -> int:
        """All that it needs of the forward pass: the above and, of a reduction, one over its divisor."""
        return self.kept() * self.student.shape[0] + int(self.reduction != "none")


def cut(rows: Tensor | None, part: slice) -> Tensor | None:
    return None if rows is None else rows[part]


def judging_scale(wrong_scale: float | None, teachers: int) -> float | None:
    """W, where there is somebody to choose between: a lone teacher has weight 1, right or wrong."""
    return float(wrong_scale) if wrong_scale is not None and teachers > 1 else None
