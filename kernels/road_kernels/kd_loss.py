"""The distillation loss: hard cross-entropy and softened KL from raw logits, from one teacher or many.

    total = (1 - weight) CE(student, label) + weight kl_scale KL(teacher_T || student_T)

On CUDA tensors Triton kernels compute it, elsewhere plain PyTorch (`reference.py`, the definition). The kernels are two
custom operators, statistics forward and gradient backward, so that torch.compile passes them through whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import plan, reference
from .arguments import (
    check_logits,
    check_loss_settings,
    check_row_weight,
    check_rows,
    check_teacher_argument,
    check_teachers,
    check_weighting,
    choose,
)
from .launch import dense
from .reference import KDLoss, Teachers, as_teachers, kl_factor


def kd_loss(
    student: Tensor,
    teacher: Teachers,
    labels: Tensor | None,
    *,
    temperature: float,
    weight: float,
    kl_scale: str | float = "t2",
    lengths: Tensor | None = None,
    teacher_weights: Tensor | None = None,
    wrong_scale: float | None = None,
    row_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    impl: str = "auto",
) -> KDLoss:
    """KDLoss(total, hard, soft): the objective, and its two parts per row, detached and unscaled, for the log.

    student: raw logits [rows, classes], any float dtype and strides. Only the student gets a gradient, in its own dtype.
    teacher: [rows, classes], [teachers, rows, classes] or a list of [rows, classes], of any float dtype and strides; None
        with weight 0 is plain cross-entropy. Several teachers are combined as `combine_teachers` does, on the fly.
    labels: [rows] integers. A row labelled `ignore_index` contributes nothing, to neither term. None only with weight 1.
    temperature: T > 0 of the soft term; the hard term has T = 1.
    weight: lambda in [0, 1]. What is given is logged: a teacher at weight 0 still yields `soft`.
    kl_scale: "t2" (T squared keeps the soft gradient's size as T changes) or the factor itself (ROaD's formula: 1).
    lengths: [rows], valid classes per row, 1 ... classes; what lies behind is neither read nor given a gradient.
    teacher_weights: [teachers, rows], or wrong_scale: W of ROaD, Algorithm 2. One of the two, or none: the plain mean.
    row_weight: [rows], multiplies a row's loss; a row of weight 0 contributes nothing, even an infinite loss.
    reduction: "mean" divides the sum of weighted losses by the sum of row weights of the rows not ignored (without
        row_weight: by their number), and is 0 where that is 0; "sum"; "none": total is [rows].
    impl: "auto" takes Triton on CUDA tensors (float64 excepted) and PyTorch elsewhere; "triton"; "torch".

    total, hard and soft are float32, or float64 where a float64 tensor came. Raises ValueError naming the argument;
    `arguments.py` says what is checked where. Nothing here waits for the device.
    """
    check_logits("student", student)
    check_teacher_argument(teacher)
    teachers = [logits.detach() for logits in as_teachers(teacher)]
    shape, device = tuple(student.shape), student.device
    check_teachers(teachers, shape, device)
    check_loss_settings(temperature, weight, kl_scale, reduction, bool(teachers), labels is not None)
    check_rows(labels, lengths, shape, device, ignore_index)
    check_weighting(teachers, labels, wrong_scale, teacher_weights, shape[0], device)
    check_row_weight(row_weight, shape[0], device)
    if choose(impl, [student, *teachers]) == "torch":
        return reference.kd_loss(
            student,
            teachers,
            labels,
            temperature=temperature,
            weight=weight,
            kl_scale=kl_scale,
            lengths=lengths,
            teacher_weights=teacher_weights,
            wrong_scale=wrong_scale,
            row_weight=row_weight,
            ignore_index=ignore_index,
            reduction=reduction,
        )
    total, hard, soft, *_ = forward_op(
        student,
        teachers,
        labels,
        lengths,
        None if teacher_weights is None else teacher_weights.detach(),
        None if row_weight is None else row_weight.detach(),
        float(temperature),
        1.0 - weight,
        weight * kl_factor(kl_scale, temperature),
        wrong_scale if len(teachers) > 1 else None,  # a lone teacher has weight 1, right or wrong
        ignore_index,
        reduction,
    )
    return KDLoss(total, hard.detach(), soft.detach())


# The operators below take flat arguments of the kinds that an operator schema knows, hence no NamedTuple here.


@torch.library.custom_op("road_kernels::kd_forward", mutates_args=())
def forward_op(
    student: Tensor,
    teachers: Sequence[Tensor],
    labels: Tensor | None,
    lengths: Tensor | None,
    teacher_weights: Tensor | None,
    row_weight: Tensor | None,
    temperature: float,
    hard_scale: float,
    soft_scale: float,
    wrong_scale: float | None,
    ignore_index: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """total, hard, soft, statistics, judged weights, inverse divisor: see forward.py."""
    from .forward import forward

    return forward(
        student,
        list(teachers),
        dense(labels),
        dense(lengths),
        dense(teacher_weights),
        dense(row_weight),
        temperature,
        hard_scale,
        soft_scale,
        wrong_scale,
        ignore_index,
        reduction,
    )


@forward_op.register_fake
def _(student, teachers, labels, lengths, teacher_weights, row_weight, temperature, hard_scale, soft_scale, wrong_scale, ignore_index, reduction):  # fmt: skip
    rows = student.shape[0]

    def empty(*shape):
        return student.new_empty(shape, dtype=torch.float32)

    total, inverse = (empty(rows), empty(0)) if reduction == "none" else (empty(), empty())
    judged = empty(0) if wrong_scale is None else empty(len(teachers), rows)
    return total, empty(rows), empty(rows), empty(plan.STATISTICS, rows), judged, inverse


@torch.library.custom_op("road_kernels::kd_backward", mutates_args=())
def backward_op(
    grad_total: Tensor,
    student: Tensor,
    teachers: Sequence[Tensor],
    labels: Tensor | None,
    lengths: Tensor | None,
    teacher_weights: Tensor | None,
    row_weight: Tensor | None,
    statistics: Tensor,
    inverse: Tensor | None,
    temperature: float,
    hard_scale: float,
    soft_scale: float,
    ignore_index: int,
) -> Tensor:
    """The student's gradient: see backward.py."""
    from .backward import backward

    return backward(
        grad_total,
        student,
        list(teachers),
        dense(labels),
        dense(lengths),
        dense(teacher_weights),
        dense(row_weight),
        statistics,
        inverse,
        temperature,
        hard_scale,
        soft_scale,
        ignore_index,
    )


@backward_op.register_fake
def _(grad_total, student, teachers, labels, lengths, teacher_weights, row_weight, statistics, inverse, temperature, hard_scale, soft_scale, ignore_index):  # fmt: skip
    return plan.padded_logits(student)


def save_for_gradient(ctx, inputs, output) -> None:
    student, teachers, labels, lengths, teacher_weights, row_weight, *settings = inputs
    statistics, judged, inverse = output[3:]
    temperature, hard_scale, soft_scale, wrong_scale, ignore_index, reduction = settings
    if wrong_scale is not None:
        teacher_weights = judged
    ctx.set_materialize_grads(False)  # else autograd launches a fill for each output that nothing was computed from
    ctx.settings = temperature, hard_scale, soft_scale, ignore_index
    ctx.teachers = len(teachers)
    optional = labels, lengths, teacher_weights, row_weight, None if reduction == "none" else inverse
    ctx.present = [tensor is not None for tensor in optional]
    ctx.save_for_backward(student, statistics, *teachers, *(tensor for tensor in optional if tensor is not None))


def student_gradient(ctx, grad_total, *unused):
    if grad_total is None:
        return None, [None] * ctx.teachers, *[None] * 10
    student, statistics, *rest = ctx.saved_tensors
    teachers, rest = rest[: ctx.teachers], iter(rest[ctx.teachers :])
    labels, lengths, teacher_weights, row_weight, inverse = (next(rest) if there else None for there in ctx.present)
    gradient = backward_op(
        grad_total, student, teachers, labels, lengths, teacher_weights, row_weight, statistics, inverse, *ctx.settings
    )
    return gradient, [None] * ctx.teachers, *[None] * 10


forward_op.register_autograd(student_gradient, setup_context=save_for_gradient)
