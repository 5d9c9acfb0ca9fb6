"""The first-batch guard: what the kernel computes, held against the definition, on a trainer's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .kd_loss import kd_loss
from .reference import Teachers

# What the loss may be off by, relative, and an entry of the gradient, relative to the largest of its row: twice the rounding
# of the student's dtype, since a kernel may fall on the other side of a tie; in float32, the error of long sums.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class KernelMismatch(RuntimeError):
    """The kernel and the definition disagree on the same tensors."""


class Agreement(NamedTuple):
    """How far loss and gradient are from the definition in float64, and how far they may be."""

    loss_error: float
    gradient_error: float
    tolerance: float


def check_against_reference(
    student: Tensor,
    teacher: Teachers,
    labels: Tensor | None,
    *,
    rows: int = 256,
    loss: Callable[..., reference.KDLoss] = kd_loss,
    **options: Any,
) -> Agreement:
    """The Agreement of `kd_loss` and the reference on the first `rows` rows; KernelMismatch where they disagree.

    To be called once, on a first batch: it copies rows to float64 and waits for the device. `options` are those of `kd_loss`.
    Gradients are compared, not losses alone: a loss can be right to 0.04 % with a gradient that is wrong by 20 %. Both are
    computed for the sum over rows, so that a mean over many rows does not hide small entries below the dtype's range.
    """
    part = slice(0, rows)
    student = student.detach()[part]
    teachers = [logits.detach()[part] for logits in reference.as_teachers(teacher)] or None
    labels = None if labels is None else labels[part]
    for name in ("lengths", "row_weight"):
        if options.get(name) is not None:
            options[name] = options[name][part]
    if options.get("teacher_weights") is not None:
        options["teacher_weights"] = options["teacher_weights"][:, part]
    options.pop("reduction", None)
    impl = options.pop("impl", "auto")

    ours = student.clone().requires_grad_()
    exact = student.double().requires_grad_()
    came = loss(ours, teachers, labels, impl=impl, reduction="none", **options).total
    expected = kd_loss(exact, teachers, labels, impl="torch", reduction="none", **options).total
    came.sum().backward()
    expected.sum().backward()
    assert ours.grad is not None and exact.grad is not None

    tolerance = TOLERANCE[student.dtype]
    came, expected = came.detach(), expected.detach()
    loss_error = largest((came - expected).abs() / (1 + expected.abs()))
    # A row that is already right has next to no gradient: what is left is a difference of probabilities near 1, whose
    # rounding is measured against the size of a row that has something to learn.
    size = exact.grad.abs().amax(1, keepdim=True) + 0.01 * row_scale(options.get("row_weight"), exact)
    gradient_error = largest((ours.grad - exact.grad).abs() / size)
    agreement = Agreement(loss_error, gradient_error, tolerance)
    if not max(loss_error, gradient_error) <= tolerance:
        raise KernelMismatch(
            f"kd_loss is off by {loss_error:.2g} (loss) and {gradient_error:.2g} (gradient), allowed {tolerance:.2g}: "
            f"student {list(student.shape)} {student.dtype} on {student.device}, "
            f"{0 if teachers is None else len(teachers)} teachers, options {sorted(options)}. "
            'Train with impl="torch" and report these shapes.'
        )
    return agreement


def row_scale(row_weight: Tensor | None, like: Tensor) -> Tensor:
    """[rows, 1]: what a row's gradient is multiplied by; 1 for rows without a gradient."""
    if row_weight is None:
        return like.new_ones(like.shape[0], 1)
    scale = row_weight.to(like.dtype).abs()[:, None]
    return torch.where(scale == 0, 1.0, scale)


def largest(errors: Tensor) -> float:
    """The largest error; infinite where one is not a number."""
    return float(errors.nan_to_num(torch.inf).max()) if errors.numel() else 0.0
