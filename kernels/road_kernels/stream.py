"""Device code that reads rows of any length once, in lanes.

A program has R rows x T lanes, one to a thread, flat as [L]. A tile is [L, VEC], one load of each lane; U tiles, side by side in
the row, are read together. Each lane keeps statistics of its own, as if its classes were all there are, so that the threads
of a row meet once, at the end, and a loop over the row has nothing in it to wait for but its loads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .rows import algorithm_2_factors, at_temperature_1, load_one


@triton.jit
def spread(of_rows, R: tl.constexpr, T: tl.constexpr):
    """[L]: what each row has [R], for its lanes."""
    return tl.reshape(tl.broadcast_to(of_rows[:, None], [R, T]), [R * T])


@triton.jit
def lane_columns(start, R: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr):
    """[L, VEC], the columns of the tile that begins at `start` in each row."""
    lane = tl.arange(0, R * T) % T
    return start + lane[:, None] * VEC + tl.arange(0, VEC)[None, :]


@triton.jit
def row_shift(rows, row_stride, VEC: tl.constexpr, SHIFTED: tl.constexpr):
    """By how many elements rows start behind a vector boundary, if they are SHIFTED: columns are counted from there."""
    if SHIFTED:
        return (rows * row_stride % VEC).to(tl.int32)
    return tl.zeros(rows.shape, tl.int32)


@triton.jit
def load_lanes(
    logits, row_stride, class_stride, rows, columns, end, MASKED: tl.constexpr, VEC: tl.constexpr, SHIFTED: tl.constexpr
):  # fmt: skip
    """A tile of logits; MASKED: 0 in vectors behind the rows' ends, which are not read. row_stride: in vectors, or, of SHIFTED rows,
    in elements."""
    first = rows * row_stride // VEC if SHIFTED else rows * row_stride
    at = (first * VEC)[:, None] + columns.to(tl.int64) * class_stride
    if MASKED:
        mask = (columns // VEC) < ((end + (VEC - 1)) // VEC)[:, None]
        return tl.load(logits + at, mask=mask, other=0.0).to(tl.float32)
    return tl.load(logits + at).to(tl.float32)


@triton.jit
def present(logits, columns, shift, end, MASKED: tl.constexpr, SHIFTED: tl.constexpr):
    """-inf where there is no class."""
    if MASKED:
        logits = tl.where(columns < end[:, None], logits, float("-inf"))
        if SHIFTED:
            logits = tl.where(columns >= shift[:, None], logits, float("-inf"))
    return logits


@triton.jit
def mixed_lanes(
    teachers, t_rows, t_classes, teacher_weights, bits, wrong_scale, rows, columns, shift, end, N,
    MASKED: tl.constexpr, M: tl.constexpr, VEC: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """The combined logits of a tile; with wrong_scale, `bits` say which teachers are right."""
    lifted = wrong_scale
    lowered = wrong_scale
    if wrong_scale is not None:
        lifted, lowered = algorithm_2_factors(bits, wrong_scale, M)
    mixture = tl.zeros([1, 1], tl.float32)
    for m in tl.static_range(M):
        logits = load_lanes(teachers[m], t_rows[m], t_classes[m], rows, columns, end, MASKED, VEC, SHIFTED)
        if wrong_scale is not None:
            logits *= tl.where(((bits >> m) & 1) == 1, lifted, lowered)[:, None]
        elif teacher_weights is not None:
            weight = tl.load(teacher_weights + m * N + rows).to(tl.float32)[:, None]
            logits = tl.where(weight == 0.0, 0.0, logits * weight)
        mixture = mixture + logits
    if M > 1:
        mixture *= 1.0 / M
    return present(mixture, columns, shift, end, MASKED, SHIFTED)


@triton.jit
def right_teachers(
    teachers, t_rows, t_classes, rows, label, known, C, shift, end,
    U: tl.constexpr, R: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr, M: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """The bits [R] of the teachers whose argmax, the first of equals, is the label [R]; reads every row once."""
    bits = tl.zeros([R], tl.int64)
    lane_rows = spread(rows, R, T)
    lane_label = (spread(label, R, T) + shift)[:, None]
    for m in tl.static_range(M):
        target = load_one(teachers[m], t_rows[m], t_classes[m], rows, label, known, 1 if SHIFTED else VEC)
        target = spread(target, R, T)[:, None]
        beaten = tl.zeros([R * T], tl.int32)
        for start in range(0, C + (VEC - 1 if SHIFTED else 0), U * T * VEC):
            tiles = ()
            for u in tl.static_range(U):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                logits = load_lanes(teachers[m], t_rows[m], t_classes[m], lane_rows, columns, end, True, VEC, SHIFTED)
                tiles = tiles + (logits,)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no other way)
            for u in tl.static_range(U):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                before = (tiles[u] > target) | ((tiles[u] == target) & (columns < lane_label))
                before = before & (columns >= shift[:, None]) & (columns < end[:, None])
                beaten = beaten | tl.max(before.to(tl.int32), 1)
        right = known & (tl.max(tl.reshape(beaten, [R, T]), 1) == 0)
        bits += right.to(tl.int64) << m
    return bits


@triton.jit
def raised_origin(tiles, origin, rate, U: tl.constexpr):
    """The lanes' origin with the tiles' largest logits in it."""
    top = tl.max(tiles[0], 1)
    for u in tl.static_range(1, U):
        top = tl.maximum(top, tl.max(tiles[u], 1))
    return tl.maximum(origin, top * rate)


@triton.jit
def lanes_step(
    tiles, mixtures, student, teacher, rate, temperature, U: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """The lanes' statistics with U more tiles in them: of the student (origin, sums at T and at 1), of the teacher (origin,
    sum, sum of share x (teacher - student))."""
    origin = raised_origin(tiles, student[0], rate, U)
    moved = student[0] - origin
    shrink = tl.exp2(moved)
    soft_sum = student[1] * shrink
    hard_sum = student[2] * at_temperature_1(shrink, moved, temperature, POWER)
    teacher_origin = teacher[0]
    teacher_sum = teacher[1]
    gap = teacher[2]
    if M > 0:
        teacher_origin = raised_origin(mixtures, teacher[0], rate, U)
        teacher_moved = teacher[0] - teacher_origin
        teacher_shrink = tl.exp2(teacher_moved)
        gap = moved_gap(gap, teacher_sum, teacher_shrink, teacher_moved - moved)
        teacher_sum = teacher_sum * teacher_shrink
    for u in tl.static_range(U):
        scaled = tl.fma(tiles[u], rate, -origin[:, None])
        softened = tl.exp2(scaled)
        soft_sum += tl.sum(softened, 1)
        hard_sum += tl.sum(at_temperature_1(softened, scaled, temperature, POWER), 1)
        if M > 0:
            teacher_scaled = tl.fma(mixtures[u], rate, -teacher_origin[:, None])
            share = tl.exp2(teacher_scaled)
            teacher_sum += tl.sum(share, 1)
            # Where the teacher's share is 0 the term is 0, also when a logit is -inf.
            gap += tl.sum(share * tl.where(share > 0.0, teacher_scaled - scaled, 0.0), 1)
    return (origin, soft_sum, hard_sum), (teacher_origin, teacher_sum, gap)


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
