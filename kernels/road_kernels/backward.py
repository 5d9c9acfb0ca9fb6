"""The student's gradient from the saved statistics: elementwise, one more read of the logits.

grad_output stays on the device and multiplies in float32 before the gradient is rounded to the student's dtype, so that a
loss scale does what it is for.
"""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .forward import strides
from .launch import Launch
from .plan import Layout
from .problem import Kind, Problem
from .rows import (
    LOG2_E,
    at_temperature_1,
    combined_tile,
    load_tile,
    row_facts,
    saved_weights,
    whole_vectors,
)


@triton.jit
def gradient_kernel(
    grad_total, student, teachers, labels, lengths, teacher_weights, row_weight, saved, gradient,
    rate, temperature, hard_scale, soft_rate,
    grad_stride, s_row, s_class, t_rows, t_classes, g_row, N, C, tiles, ignore_index,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, JUDGED: tl.constexpr,
    REDUCED: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient; exactly 0 in ignored rows and behind a row's length. `gradient` may be `student` itself."""
    program = tl.program_id(0)
    rows = ((program // tiles) * R).to(tl.int64) + tl.arange(0, R)
    columns = (program % tiles) * B + tl.arange(0, B)
    here = rows < N
    label, classes, weight, kept = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
    mask = here[:, None] & whole_vectors(classes, columns, VEC)
    valid = (kept & (weight != 0.0))[:, None] & (columns[None, :] < classes[:, None])

    logits = load_tile(student, s_row, s_class, rows, columns, mask, VEC)
    scale = tl.load(grad_total + rows * grad_stride, mask=here, other=0.0).to(tl.float32) * weight
    if REDUCED:
        scale *= tl.load(saved + KEPT * N)
    hard_factor = scale * hard_scale
    # A factor of 0 leaves its term out, whatever the teacher says.
    soft_factor = scale * soft_rate
    origin = tl.load(saved + rows, mask=here, other=0.0)
    soft_inverse = tl.load(saved + N + rows, mask=here, other=0.0)
    scaled = tl.fma(logits, rate, -origin[:, None])
    softened = tl.exp2(scaled)
    slope = tl.zeros([R, B], tl.float32)
    if labels is not None:
        hard_inverse = tl.load(saved + 2 * N + rows, mask=here, other=0.0)
        sharp = at_temperature_1(softened, scaled, temperature, POWER)
        hit = columns[None, :] == label[:, None]
        slope = sharp * (hard_factor * hard_inverse)[:, None] - tl.where(hit, hard_factor[:, None], 0.0)
    if M > 0:
        mixture, _ = combined_tile(
            teachers,
            t_rows,
            t_classes,
            saved_weights(saved, N) if JUDGED else teacher_weights,
            None,
            rows,
            columns,
            mask,
            valid,
            label,
            kept,
            N,
            M,
            VEC,
        )
        teacher_origin = tl.load(saved + 3 * N + rows, mask=here, other=0.0)
        teacher_inverse = tl.load(saved + 4 * N + rows, mask=here, other=0.0)
        share = tl.exp2(tl.fma(mixture, rate, -teacher_origin[:, None]))
        apart = softened * (soft_factor * soft_inverse)[:, None] - share * (soft_factor * teacher_inverse)[:, None]
        slope += tl.where(soft_rate == 0.0, 0.0, apart)
    value = tl.where(valid, slope, 0.0)
    at = (rows * g_row * VEC)[:, None] + columns[None, :]
    stored = here[:, None] & whole_vectors(tl.zeros([R], tl.int32) + C, columns, VEC)
    tl.store(gradient + at, value.to(gradient.dtype.element_ty), mask=stored)


@lru_cache(plan.KEPT_LAUNCHES)
def gradient_launch(signature: tuple, grad_total: tuple, gradient: tuple) -> Launch:
    kind, upstream, out = Kind.of(signature), Layout(*grad_total), Layout(*gradient)
    N, C = kind.student.shape
    M = len(kind.teachers)
    vec = plan.vector_width(kind.student, out, *kind.teachers)
    tile = plan.gradient_tile(C, M, vec, kind.device)
    tiles = plan.pieces(C, tile.classes)
    return Launch(
        kind.device, gradient_kernel, plan.pieces(N, tile.rows) * tiles,
        upstream.strides[0] if upstream.strides else 0,
        *strides(kind.student, kind.teachers, vec), out.strides[0] // vec, N, C, tiles, kind.ignore_index,
        R=tile.rows, B=tile.classes, VEC=vec, POWER=kind.power, M=M, JUDGED=kind.judged, REDUCED=kind.reduction != "none", KEPT=kind.kept(),
        warps=tile.warps, registers=tile.registers,
    )  # fmt: skip


def backward(problem: Problem, saved: Tensor, grad_total: Tensor, gradient: Tensor | None = None) -> Tensor:
    """The gradient [N, C] in the student's dtype; grad_total is a scalar or [N]. Written into `gradient` if that is given."""
    student, teachers, labels, lengths, teacher_weights, row_weight, temperature, hard_scale, soft_scale, *_ = problem
    if gradient is None:
        gradient = plan.padded_logits(student)
    start = gradient_launch(problem.signature(), plan.signature(grad_total), plan.signature(gradient))
    start(
        grad_total, student, tuple(teachers), labels, lengths, teacher_weights, row_weight, saved, gradient,
        LOG2_E.value / temperature, temperature, hard_scale, soft_scale / temperature,
    )  # fmt: skip
    return gradient
