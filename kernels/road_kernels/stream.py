"""Device code that reads rows of any length once, in lanes.

A tile is [U groups, R rows, T lanes, VEC elements of one load]: a thread holds one lane and all of its groups. Each lane
keeps statistics of its own, as if its classes were all there are, so that the threads of a row meet once, at the end, and
a loop over the row has nothing in it to wait for but its loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import algorithm_2_factors, at_temperature_1, load_one


@triton.jit
def lane_columns(U: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr):
    """[U, 1, T, VEC], a tile's columns: VEC neighbours to a lane, the lanes of a group side by side, groups one after another."""
    group = tl.arange(0, U)[:, None, None, None] * (T * VEC)
    return group + tl.arange(0, T)[None, None, :, None] * VEC + tl.arange(0, VEC)[None, None, None, :]


@triton.jit
def load_lanes(logits, row_stride, class_stride, rows, columns, classes, MASKED: tl.constexpr, VEC: tl.constexpr):
    """A tile of logits; MASKED: 0 in vectors behind the rows' classes, which are not read."""
    at = (rows * row_stride * VEC)[None, :, None, None] + columns.to(tl.int64) * class_stride
    if MASKED:
        mask = (columns // VEC) < ((classes + (VEC - 1)) // VEC)[None, :, None, None]
        return tl.load(logits + at, mask=mask, other=0.0).to(tl.float32)
    return tl.load(logits + at).to(tl.float32)


@triton.jit
def present(logits, columns, classes, MASKED: tl.constexpr):
    """-inf where there is no class."""
    if MASKED:
        logits = tl.where(columns < classes[None, :, None, None], logits, float("-inf"))
    return logits


@triton.jit
def lane_max(tile):
    return tl.max(tl.max(tile, 3), 0)


@triton.jit
def lane_sum(tile):
    return tl.sum(tl.sum(tile, 3), 0)


@triton.jit
def mixed_lanes(
    teachers, t_rows, t_classes, teacher_weights, bits, wrong_scale, rows, columns, classes, N,
    MASKED: tl.constexpr, M: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The combined logits of a tile; with wrong_scale, `bits` say which teachers are right."""
    lifted = wrong_scale
    lowered = wrong_scale
    if wrong_scale is not None:
        lifted, lowered = algorithm_2_factors(bits, wrong_scale, M)
    mixture = tl.zeros([1, 1, 1, 1], tl.float32)
    for m in tl.static_range(M):
        logits = load_lanes(teachers[m], t_rows[m], t_classes[m], rows, columns, classes, MASKED, VEC)
        if wrong_scale is not None:
            logits *= tl.where(((bits >> m) & 1) == 1, lifted, lowered)[None, :, None, None]
        elif teacher_weights is not None:
            weight = tl.load(teacher_weights + m * N + rows).to(tl.float32)[None, :, None, None]
            logits = tl.where(weight == 0.0, 0.0, logits * weight)
        mixture = mixture + logits
    if M > 1:
        mixture *= 1.0 / M
    return present(mixture, columns, classes, MASKED)


@triton.jit
def right_teachers(
    teachers, t_rows, t_classes, rows, label, known, C, classes,
    U: tl.constexpr, R: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The bits [R] of the teachers whose argmax, the first of equals, is the label; reads every row once."""
    bits = tl.zeros([R], tl.int64)
    for m in tl.static_range(M):
        target = load_one(teachers[m], t_rows[m], t_classes[m], rows, label, known, VEC)[None, :, None, None]
        beaten = tl.zeros([R, T], tl.int32)
        for start in range(0, C, U * T * VEC):
            columns = start + lane_columns(U, T, VEC)
            logits = load_lanes(teachers[m], t_rows[m], t_classes[m], rows, columns, classes, True, VEC)
            before = (logits > target) | ((logits == target) & (columns < label[None, :, None, None]))
            before = before & (columns < classes[None, :, None, None])
            beaten = beaten | lane_max(before.to(tl.int32))
        right = known & (tl.max(beaten, 1) == 0)
        bits += right.to(tl.int64) << m
    return bits


@triton.jit
def student_step(logits, origin, soft_sum, hard_sum, rate, temperature, POWER: tl.constexpr):
    """The lanes' origin and sums with one more tile in them, the tile scaled, and how far the origin has moved."""
    raised = tl.maximum(origin, lane_max(logits) * rate)
    moved = origin - raised
    shrink = tl.exp2(moved)
    scaled = tl.fma(logits, rate, -raised[None, :, :, None])
    softened = tl.exp2(scaled)
    soft_sum = soft_sum * shrink + lane_sum(softened)
    sharp = lane_sum(at_temperature_1(softened, scaled, temperature, POWER))
    hard_sum = hard_sum * at_temperature_1(shrink, moved, temperature, POWER) + sharp
    return raised, soft_sum, hard_sum, scaled, moved


@triton.jit
def teacher_step(logits, origin, teacher_sum, gap, student_scaled, student_moved, rate):
    """The lanes' origin, sum, and sum of share x (teacher - student), with one more tile in them."""
    raised = tl.maximum(origin, lane_max(logits) * rate)
    moved = origin - raised
    shrink = tl.exp2(moved)
    scaled = tl.fma(logits, rate, -raised[None, :, :, None])
    softened = tl.exp2(scaled)
    gap = moved_gap(gap, teacher_sum, shrink, moved - student_moved)
    # Where the teacher's share is 0 the term is 0, also when a logit is -inf.
    gap += lane_sum(softened * tl.where(softened > 0.0, scaled - student_scaled, 0.0))
    return raised, teacher_sum * shrink + lane_sum(softened), gap


@triton.jit
def moved_gap(gap, teacher_sum, shrink, moved):
    """A gap relative to other origins; nothing, where no teacher's share is left of it."""
    return tl.where(teacher_sum * shrink > 0.0, shrink * (gap + teacher_sum * moved), 0.0)


@triton.jit
def merged_student(origin, soft_sum, hard_sum, temperature, POWER: tl.constexpr):
    """The rows' origin and sums [R] from those of their lanes [R, T], and how far each lane's origin has moved."""
    raised = tl.max(origin, 1)
    moved = origin - raised[:, None]
    shrink = tl.exp2(moved)
    soft_row = tl.sum(soft_sum * shrink, 1)
    return raised, soft_row, tl.sum(hard_sum * at_temperature_1(shrink, moved, temperature, POWER), 1), moved


@triton.jit
def merged_teacher(origin, teacher_sum, gap, student_moved):
    raised = tl.max(origin, 1)
    moved = origin - raised[:, None]
    shrink = tl.exp2(moved)
    gap = moved_gap(gap, teacher_sum, shrink, moved - student_moved)
    return raised, tl.sum(teacher_sum * shrink, 1), tl.sum(gap, 1)
