"""A distillation loss to be computed: checked, detached, and with the factors of its two terms worked out."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
        if all(numbers is None or numbers.is_contiguous() for numbers in rows):
            return self
        return Problem(*self[:2], *(None if numbers is None else numbers.contiguous() for numbers in rows), *self[6:])


class Saved(NamedTuple):
    """What the gradient needs of the forward pass.

    statistics: [5, rows]. judged: Algorithm 2's weights [teachers, rows], or empty without wrong_scale.
    inverse: one over the divisor of the reduction, a scalar; empty for reduction="none".
    """

    statistics: Tensor
    judged: Tensor
    inverse: Tensor


def cut(rows: Tensor | None, part: slice) -> Tensor | None:
    return None if rows is None else rows[part]
