"""The definition of both functions, in plain PyTorch: the CPU path, and what the Triton kernels are held against.

Autograd differentiates it, float64 stays float64, half types are computed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import Problem

Teachers = Tensor | Sequence[Tensor] | None


class KDLoss(NamedTuple):
    """What a distillation loss returns.

    total: the objective, a scalar, or [rows] for reduction="none"; the only part with a gradient.
    hard:  [rows], cross-entropy with the label at T = 1; 0 where the row is ignored or labels are not given.
    soft:  [rows], KL(teacher_T || student_T) in nats, neither scaled by kl_scale nor weighted; 0 where there is none.
    """

    total: Tensor
    hard: Tensor
    soft: Tensor


def as_teachers(teacher: Teachers) -> list[Tensor]:
    """One [rows, classes] tensor per teacher, without a copy, from any of the accepted spellings."""
    if teacher is None:
        return []
    if isinstance(teacher, Tensor):
        return [teacher] if teacher.dim() == 2 else list(teacher.unbind(0))
    return list(teacher)


def kl_factor(kl_scale: str | float, temperature: float) -> float:
    """What multiplies the KL term: T squared for "t2", else the number itself."""
    return float(temperature) ** 2 if kl_scale == "t2" else float(kl_scale)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 when any tensor is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def weights_from_correctness(correct: Tensor, wrong_scale: float) -> Tensor:
    """Teacher weights [teachers, rows] of Weighted KD (ROaD, Algorithm 2) from who is right, [teachers, rows] bool.

    A wrong teacher gets W, a right one (M - wrong W) / right, so that the weights of a row sum to M. The paper divides
    by zero where every teacher is wrong: there each gets 1, the plain mean.
    """
    teachers = correct.shape[0]
    right = correct.sum(0)
    lifted = (teachers - (teachers - right) * wrong_scale) / right.clamp(min=1)
    weights = torch.where(correct, lifted, torch.full_like(lifted, wrong_scale))
    return torch.where(right == 0, torch.ones_like(weights), weights)


def absent_classes(lengths: Tensor | None, classes: int) -> Tensor | None:
    """[rows, classes] bool, True behind each row's own end; None when all rows are full."""
    if lengths is None:
        return None
    return torch.arange(classes, device=lengths.device) >= lengths[:, None]


def combine_teachers(
    teacher: Teachers,
    labels: Tensor | None = None,
    *,
    wrong_scale: float | None = None,
    teacher_weights: Tensor | None = None,
    lengths: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Combined raw teacher logits [rows, classes], -inf behind a row's length; no gradient (ROaD, Algorithm 2).

    The sum of weight x logits over the teachers, divided by their number. The weights are 1, or `teacher_weights`
    [teachers, rows], or Algorithm 2's when `wrong_scale` is given: a teacher is right where the argmax of its logits
    (the first of equals, among the row's own classes) is the label.
    """
    teachers = [logits.detach() for logits in as_teachers(teacher)]
    absent = absent_classes(lengths, teachers[0].shape[1])
    if wrong_scale is not None:
        assert labels is not None
        best = [logits if absent is None else logits.masked_fill(absent, -torch.inf) for logits in teachers]
        correct = torch.stack([logits.argmax(1) == labels for logits in best])
        teacher_weights = weights_from_correctness(correct, wrong_scale)
    accumulation = accumulation_dtype(*teachers)
    if len(teachers) == 1 and teacher_weights is None:
        combined = teachers[0].to(accumulation, copy=True)
    else:
        combined = torch.zeros(teachers[0].shape, dtype=accumulation, device=teachers[0].device)
        for index, logits in enumerate(teachers):
            if teacher_weights is None:
                combined += logits
            else:
                weight = teacher_weights[index].to(accumulation)[:, None]
                # A teacher of weight 0 is left out, whatever it says: 0 x inf would be NaN.
                combined += torch.where(weight == 0, 0.0, logits * weight)
        combined /= len(teachers)
    if absent is not None:
        combined = combined.masked_fill(absent, -torch.inf)
    return combined.to(dtype or result_dtype(teachers))


def result_dtype(teachers: Sequence[Tensor]) -> torch.dtype:
    """The dtype that holds every teacher's logits."""
    dtype = teachers[0].dtype
    for logits in teachers[1:]:
        dtype = torch.promote_types(dtype, logits.dtype)
    return dtype


def kd_loss(problem: Problem) -> KDLoss:
    """The KDLoss of a problem, by definition; autograd differentiates it."""
    student, teachers, labels = problem.student, problem.teachers, problem.labels
    accumulation = accumulation_dtype(student, *teachers)
    count = student.shape[0]
    hard = soft = torch.zeros(count, dtype=accumulation, device=student.device)
    # A masked logit has no gradient and cannot poison a sum: absent classes become -inf, ignored rows become 0.
    absent = absent_classes(problem.lengths, student.shape[1])
    ignored = torch.zeros(count, dtype=torch.bool, device=student.device)
    if labels is not None:
        ignored = labels == problem.ignore_index

    def present(logits: Tensor) -> Tensor:
        logits = logits.to(accumulation)
        if absent is not None:
            logits = logits.masked_fill(absent, -torch.inf)
        return logits.masked_fill(ignored[:, None], 0.0) if may_hold(ignored) else logits

    logits = present(student)
    if labels is not None:
        hard = F.cross_entropy(logits, labels.long(), ignore_index=problem.ignore_index, reduction="none")
    if teachers:
        target = combine_teachers(
            teachers,
            labels,
            wrong_scale=problem.wrong_scale,
            teacher_weights=problem.teacher_weights,
            lengths=problem.lengths,
            dtype=accumulation,
        )
        soft = divergence(present(target), logits, problem.temperature).masked_fill(ignored, 0.0)
    losses = nothing(student, accumulation)
    for factor, rows in ((problem.hard_scale, hard), (problem.soft_scale, soft)):
        if factor:  # a factor of 0 leaves the term out, so that an infinite one cannot turn into NaN
            losses = losses + factor * rows

    row_weights = weights_of_rows(losses, problem)
    losses = torch.where(row_weights == 0, 0.0, losses * row_weights)
    return KDLoss(reduce_rows(losses, row_weights, problem.reduction), hard.detach(), soft.detach())


def weights_of_rows(losses: Tensor, problem: Problem) -> Tensor:
    """[rows], the row weights in the dtype of the losses; 0 for an ignored row."""
    weights = torch.ones_like(losses) if problem.row_weight is None else problem.row_weight.to(losses.dtype)
    return weights if problem.labels is None else weights.masked_fill(problem.labels == problem.ignore_index, 0.0)


def divergence(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """[rows], KL(softmax(target / T) || softmax(logits / T)) in nats; a class of share 0 adds 0."""
    log_target = F.log_softmax(target / temperature, 1)
    share = log_target.exp()
    gap = log_target - F.log_softmax(logits / temperature, 1)
    rows = (share * gap).sum(1)
    # A share of 0 times a logarithm of -inf is NaN. The mask is a pass over everything, so not without need.
    if may_hold(rows.isnan()):
        rows = (share * gap.masked_fill(share == 0, 0.0)).sum(1)
    return rows


def may_hold(rows: Tensor) -> bool:
    """Whether any row is True; without a look, and so True, where that would stop a GPU or a compiler."""
    if rows.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return bool(rows.any())


def nothing(student: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows] zeros that depend on the student: a loss without any term has a gradient, of zero."""
    return student[:, :0].sum(1, dtype=dtype)


def reduce_rows(losses: Tensor, row_weights: Tensor, reduction: str) -> Tensor:
    """The objective from row losses that already carry their row weight; a mean over no weight at all is 0."""
    by = divisor(row_weights, reduction)
    return losses if by is None else losses.sum() / by


def divisor(row_weights: Tensor, reduction: str) -> Tensor | None:
    """What the sum of the losses is divided by, a scalar; None where the losses are not added up."""
    if reduction == "none":
        return None
    if reduction == "sum":
        return torch.ones_like(row_weights[:0].sum())
    total = row_weights.sum()
    return torch.where(total == 0, 1.0, total)
