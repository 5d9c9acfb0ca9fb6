"""Weighted KD's combination of teachers, written out (ROaD, Algorithm 2). Inside `kd_loss` it happens on the fly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from . import plan, reference
from .arguments import check_rows, check_teacher_argument, check_teachers, check_weighting, choose, refuse
from .problem import judging_scale
from .reference import Teachers, as_teachers, result_dtype


def combine_teachers(
    teacher: Teachers,
    labels: Tensor | None = None,
    *,
    wrong_scale: float | None = None,
    teacher_weights: Tensor | None = None,
    lengths: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """The combined raw logits [rows, classes] of the teachers, in the dtype that holds them all; no gradient.

    The sum of weight x logits over the teachers, divided by their number. The weights are 1 (the plain mean), or
    `teacher_weights` [teachers, rows], or with `wrong_scale` W those of Algorithm 2: W for a teacher whose argmax (the
    first of equals) is not the label, (M - wrong W) / right for one whose argmax is; where none is right, 1 for each.

    teacher: [rows, classes], [teachers, rows, classes] or a list of [rows, classes], of any strides.
    labels: [rows] integers, needed for wrong_scale only. A negative label is no class: nobody is right there.
    lengths: [rows], valid classes per row; behind them the result is -inf, and an argmax does not look there.
    impl: as for `kd_loss`. Raises ValueError naming the argument.
    """
    check_teacher_argument(teacher)
    teachers = [logits.detach() if logits.requires_grad else logits for logits in as_teachers(teacher)]
    if not teachers:
        refuse("teacher", None, "at least one teacher")
    check_teachers(teachers, tuple(teachers[0].shape), teachers[0].device)
    shape, device = tuple(teachers[0].shape), teachers[0].device
    check_rows(labels, lengths, shape, device, ignore_index=None)
    check_weighting(teachers, labels, wrong_scale, teacher_weights, shape[0], device)
    if choose(impl, teachers) == "torch":
        return reference.combine_teachers(
            teachers, labels, wrong_scale=wrong_scale, teacher_weights=teacher_weights, lengths=lengths
        )
    weights = None if teacher_weights is None else teacher_weights.detach()
    given = teachers, labels, lengths, weights, judging_scale(wrong_scale, len(teachers))
    # As in kd_loss, an operator only where a graph is traced: its machinery would take longer than the launch.
    if torch.compiler.is_compiling() or isinstance(teachers[0], FakeTensor):
        return combine_op(*given)
    return combined(*given)


def combined(
    teachers: Sequence[Tensor],
    labels: Tensor | None,
    lengths: Tensor | None,
    teacher_weights: Tensor | None,
    wrong_scale: float | None,
) -> Tensor:
    """The combined logits: see mixture.py."""
    from .mixture import combine

    rows = [None if given is None else given.contiguous() for given in (labels, lengths, teacher_weights)]
    return combine(list(teachers), rows[0], rows[1], rows[2], wrong_scale, combined_like(teachers))


combine_op = torch.library.custom_op("road_kernels::combine", combined, mutates_args=())


@combine_op.register_fake
def _(teachers, labels, lengths, teacher_weights, wrong_scale):
    return combined_like(teachers)


def combined_like(teachers: Sequence[Tensor]) -> Tensor:
    return plan.padded_logits(teachers[0], dtype=result_dtype(teachers))
