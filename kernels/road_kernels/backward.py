"""The student's gradient from the saved statistics: elementwise, one more read of the logits.

grad_output stays on the device and multiplies in float32 before the gradient is rounded to the student's dtype, so that a
loss scale does what it is for.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import launch, plan
from .rows import (
    LOG2_E,
    at_temperature_1,
    combined_tile,
    kept_rows,
    load_tile,
    row_facts,
    whole_vectors,
)


@triton.jit
def gradient_kernel(
    grad_total, grad_stride, student, s_row, s_class, teachers, t_rows, t_classes, labels, lengths, teacher_weights,
    row_weight, statistics, inverse, gradient, g_row,
    N, C, tiles, rate, hard_scale, soft_rate, ignore_index,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """One tile of the gradient; exactly 0 in ignored rows and behind a row's length."""
    program = tl.program_id(0)
    rows = ((program // tiles) * R).to(tl.int64) + tl.arange(0, R)
    columns = (program % tiles) * B + tl.arange(0, B)
    here = rows < N
    kept = kept_rows(labels, rows, here, ignore_index)
    label, classes, weight = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
    live = kept & (weight != 0.0)
    mask = live[:, None] & whole_vectors(classes, columns, VEC)
    valid = live[:, None] & (columns[None, :] < classes[:, None])

    scale = tl.load(grad_total + rows * grad_stride, mask=here, other=0.0).to(tl.float32) * weight
    if inverse is not None:
        scale *= tl.load(inverse)
    top = tl.load(statistics + rows, mask=here, other=0.0)
    soft_inverse = tl.load(statistics + N + rows, mask=here, other=0.0)
    hard_inverse = tl.load(statistics + 2 * N + rows, mask=here, other=0.0)
    shifted = load_tile(student, s_row, s_class, rows, columns, mask, VEC) - top[:, None]
    softened = tl.exp2(shifted * rate)
    slope = tl.zeros([R, B], tl.float32)
    if labels is not None:
        sharp = at_temperature_1(softened, shifted, POWER)
        hit = columns[None, :] == label[:, None]
        slope += hard_scale * (sharp * hard_inverse[:, None] - tl.where(hit, 1.0, 0.0))
    if M > 0:
        mixture, _ = combined_tile(
            teachers, t_rows, t_classes, teacher_weights, None, rows, columns, mask, valid, label, kept, N, M, VEC
        )
        teacher_top = tl.load(statistics + 3 * N + rows, mask=here, other=0.0)
        teacher_inverse = tl.load(statistics + 4 * N + rows, mask=here, other=0.0)
        target = tl.exp2((mixture - teacher_top[:, None]) * rate) * teacher_inverse[:, None]
        slope += soft_rate * (softened * soft_inverse[:, None] - target)
    value = tl.where(valid, slope * scale[:, None], 0.0)
    at = (rows * g_row * VEC)[:, None] + columns[None, :]
    stored = here[:, None] & whole_vectors(tl.zeros([R], tl.int32) + C, columns, VEC)
    tl.store(gradient + at, value.to(gradient.dtype.element_ty), mask=stored)


def backward(
    grad_total: Tensor,
    student: Tensor,
    teachers: list[Tensor],
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
    """The gradient [N, C] in the student's dtype; grad_total is a scalar or [N]."""
    N, C = student.shape
    gradient = plan.padded_logits(student)
    vec = plan.vector_width(student, gradient, *teachers)
    tile = plan.gradient_tile(C, len(teachers), vec)
    tiles = plan.pieces(C, tile.classes)
    with launch.on_device(student):
        launch.start(
            gradient_kernel, (plan.pieces(N, tile.rows) * tiles,),
            grad_total, grad_total.stride(0) if grad_total.dim() else 0,
            student, student.stride(0) // vec, student.stride(1), tuple(teachers), *launch.strides(teachers, vec),
            labels, lengths, teacher_weights, row_weight, statistics, inverse, gradient, gradient.stride(0) // vec,
            N, C, tiles, LOG2_E.value / temperature, hard_scale, soft_scale / temperature, ignore_index,
            R=tile.rows, B=tile.classes, VEC=vec, POWER=plan.whole_power(temperature), M=len(teachers), warps=tile.warps,
        )  # fmt: skip
    return gradient
