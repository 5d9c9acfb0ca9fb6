"""The distillation loss: hard cross-entropy and softened KL from raw logits, from one teacher or many.

    total = (1 - weight) CE(student, label) + weight kl_scale KL(teacher_T || student_T)

On CUDA tensors Triton kernels compute it, elsewhere plain PyTorch (`reference.py`, the definition). The kernels are started
from an autograd function, statistics forward and gradient backward. Where a graph is traced two custom operators stand in
its place, which pass through whole; in eager mode an operator's own machinery would take longer than the launches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

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
from .problem import Problem
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
    teachers = [logits.detach() if logits.requires_grad else logits for logits in as_teachers(teacher)]
    shape, device = tuple(student.shape), student.device
    check_teachers(teachers, shape, device)
    check_loss_settings(temperature, weight, kl_scale, reduction, len(teachers) > 0, labels is not None)
    check_rows(labels, lengths, shape, device, ignore_index)
    check_weighting(teachers, labels, wrong_scale, teacher_weights, shape[0], device)
    check_row_weight(row_weight, shape[0], device)
    problem = Problem.of(
        student, teachers, len(teachers), labels, lengths, teacher_weights, row_weight, temperature, weight,
        kl_factor(kl_scale, temperature), wrong_scale, ignore_index, reduction,
    )  # fmt: skip
    if choose(impl, [student, *teachers]) == "torch":
        return reference.kd_loss(problem)
    if torch.compiler.is_compiling() or isinstance(student, FakeTensor):
        total, hard, soft, *_ = forward_op(*problem)
        return KDLoss(total, hard.detach(), soft.detach())
    return KDLoss(*Launched.apply(student, problem))


@cache
def kernels() -> tuple[Callable, Callable]:
    """forward and backward, imported when the first loss needs Triton; an import statement looks again at each."""
    from .backward import backward
    from .forward import forward

    return forward, backward


class Launched(torch.autograd.Function):
    """total, hard and soft, from kernels; the gradient likewise."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
        forward, _ = kernels()
        problem = problem.dense()
        total, hard, soft, saved = forward(problem)
        ctx.mark_non_differentiable(hard, soft)
        keep(ctx, problem, saved)
        return total, hard, soft

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *unused: None) -> tuple[Tensor | None, None]:  # type: ignore[override]
        if grad_total is None:
            return None, None
        _, backward = kernels()
        return backward(*kept(ctx), grad_total), None


def keep(ctx: Any, problem: Problem, saved: Tensor) -> None:
    """Saves for the gradient; the tensors so that they are freed, and a change of one in place is noticed."""
    student, teachers, labels, lengths, teacher_weights, row_weight, *settings = problem
    ctx.set_materialize_grads(False)  # else autograd launches a fill for each output that nothing was computed from
    ctx.settings = settings
    ctx.save_for_backward(student, labels, lengths, teacher_weights, row_weight, saved, *teachers)


def kept(ctx: Any) -> tuple[Problem, Tensor]:
    student, labels, lengths, teacher_weights, row_weight, saved, *teachers = ctx.saved_tensors
    return Problem(student, teachers, labels, lengths, teacher_weights, row_weight, *ctx.settings), saved


# ---- for torch.compile: the same as operators, whose schema is a Problem laid flat

PROBLEM = (
    "Tensor student, Tensor[] teachers, Tensor? labels, Tensor? lengths, Tensor? teacher_weights, Tensor? row_weight, "
    "float temperature, float hard_scale, float soft_scale, float? wrong_scale, SymInt ignore_index, str reduction"
)


@torch.library.custom_op(
    "road_kernels::kd_forward",
    mutates_args=(),
    schema=f"({PROBLEM}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def forward_op(*flat: Any) -> tuple[Tensor, ...]:
    """total, hard, soft and what the gradient needs: see forward.py."""
    forward, _ = kernels()
    return forward(Problem(*flat).dense())


@forward_op.register_fake
def _(*flat):
    problem = Problem(*flat)
    rows = problem.student.shape[0]

    def empty(*shape):
        return problem.student.new_empty(shape, dtype=torch.float32)

    reduced = problem.reduction != "none"
    judged = 0 if problem.wrong_scale is None else len(problem.teachers)
    saved = empty((plan.STATISTICS + judged) * rows + int(reduced))  # a size must be no sum with a bool
    return empty() if reduced else empty(rows), empty(rows), empty(rows), saved


@torch.library.custom_op(
    "road_kernels::kd_backward", mutates_args=(), schema=f"(Tensor grad_total, Tensor saved, {PROBLEM}) -> Tensor"
)
def backward_op(grad_total: Tensor, saved: Tensor, *flat: Any) -> Tensor:
    """The student's gradient: see backward.py."""
    _, backward = kernels()
    return backward(Problem(*flat).dense(), saved, grad_total)


@backward_op.register_fake
def _(grad_total, saved, student, *rest):
    return plan.padded_logits(student)


def save_for_gradient(ctx: Any, inputs: tuple, output: tuple) -> None:
    keep(ctx, Problem(*inputs), output[3])
    ctx.teachers = len(inputs[1])


def student_gradient(ctx: Any, grad_total: Tensor | None, *unused: None) -> tuple:
    nothing = [None] * ctx.teachers, *[None] * 10
    if grad_total is None:
        return None, *nothing
    problem, saved = kept(ctx)
    return backward_op(grad_total, saved, *problem), *nothing


forward_op.register_autograd(student_gradient, setup_context=save_for_gradient)
