"""Device code that the kernels share: row facts, tiles of logits, the teachers' combination, exponentials, row losses.

Row strides are passed divided by the vector width VEC, so that the compiler sees that each row starts at a vector boundary;
class strides are 1 almost always (Triton then compiles the 1 in).

Exponentials and logarithms are base 2, the hardware's own. A logit enters one as logit x rate - origin, with
rate = log2(e) / T and origin = the largest logit x rate, in one fused operation, which rounds once: logits of 1e4 keep their
digits, since what the origin itself is rounded by is the same for all classes and cancels. Where no class has been seen
yet the origin is LOWEST, which is finite: nothing is ever -inf minus -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-1e30)


@triton.jit
def row_facts(labels, lengths, row_weight, rows, here, C, ignore_index):
    """label (-1: none), number of classes, weight (0 for an ignored row), whether it is there and not ignored: each [R]."""
    label = tl.full(rows.shape, -1, tl.int64)
    weight = tl.where(here, 1.0, 0.0)
    kept = here
    if row_weight is not None:
        weight = tl.load(row_weight + rows, mask=here, other=0.0).to(tl.float32)
    if labels is not None:
        label = tl.load(labels + rows, mask=here, other=0).to(tl.int64)
        kept = here & (label != ignore_index)
        weight = tl.where(kept, weight, 0.0)
    classes = tl.where(here, C, 0)
    if lengths is not None:
        length = tl.load(lengths + rows, mask=here, other=0)
        classes = tl.maximum(tl.minimum(length, classes), 0).to(tl.int32)
    return label, classes, weight, kept


@triton.jit
def load_tile(logits, row_stride, class_stride, rows, columns, mask, VEC: tl.constexpr):
    at = (rows * row_stride * VEC)[:, None] + (columns.to(tl.int64) * class_stride)[None, :]
    return tl.load(logits + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_one(logits, row_stride, class_stride, rows, column, mask, VEC: tl.constexpr):
    return tl.load(logits + rows * row_stride * VEC + column * class_stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def whole_vectors(classes, columns, VEC: tl.constexpr):
    """[R, B] mask of the vectors that hold at least one of the row's classes; see plan.vector_width."""
    return (columns // VEC)[None, :] < ((classes + (VEC - 1)) // VEC)[:, None]


@triton.jit
def algorithm_2_factors(bits, wrong_scale, M: tl.constexpr):
    """What right and what wrong teachers are multiplied by, each [R] (ROaD, Algorithm 2); bits say who is right."""
    right = tl.zeros(bits.shape, tl.float32)
    for m in tl.static_range(M):
        right += ((bits >> m) & 1).to(tl.float32)
    lifted = (M - (M - right) * wrong_scale) / tl.maximum(right, 1.0)
    return lifted, tl.where(right == 0.0, 1.0, wrong_scale)


@triton.jit
def saved_weights(saved, N):
    """Where Algorithm 2's weights [M, N] lie: behind the statistics [5, N]."""
    return saved + 5 * N


@triton.jit
def store_weights(weights, bits, rows, here, wrong_scale, N, M: tl.constexpr):
    """Writes Algorithm 2's weights [M, N] for the gradient kernel, which then need not judge again."""
    lifted, lowered = algorithm_2_factors(bits, wrong_scale, M)
    for m in tl.static_range(M):
        tl.store(weights + m * N + rows, tl.where(((bits >> m) & 1) == 1, lifted, lowered), mask=here)


@triton.jit
def beats_label(logits, target, label, columns, valid):
    """[R, B] bool: classes that argmax (the first of equals) would take before the label."""
    logit = target[:, None]
    return valid & ((logits > logit) | ((logits == logit) & (columns[None, :] < label[:, None])))


@triton.jit
def combined_tile(
    teachers, t_rows, t_classes, teacher_weights, wrong_scale, rows, columns, mask, valid, label, known, N,
    M: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The combined logits [R, B] and the bits [R] of the teachers that are right (0 unless wrong_scale is given).

    With wrong_scale the tile must hold whole rows. Right and wrong teachers are added up apart: their weights are known
    only when the last teacher has been read, and each is read once.
    """
    bits = tl.zeros(rows.shape, tl.int64)
    right_sum = tl.zeros(mask.shape, tl.float32)
    wrong_sum = tl.zeros(mask.shape, tl.float32)
    for m in tl.static_range(M):
        logits = load_tile(teachers[m], t_rows[m], t_classes[m], rows, columns, mask, VEC)
        if wrong_scale is not None:
            target = load_one(teachers[m], t_rows[m], t_classes[m], rows, label, known, VEC)
            beaten = tl.max(beats_label(logits, target, label, columns, valid).to(tl.int32), 1)
            right = known & (beaten == 0)
            bits += right.to(tl.int64) << m
            right_sum += tl.where(right[:, None], logits, 0.0)
            wrong_sum += tl.where(right[:, None], 0.0, logits)
        elif teacher_weights is not None:
            weight = tl.load(teacher_weights + m * N + rows, mask=rows < N, other=0.0).to(tl.float32)[:, None]
            right_sum += tl.where(weight == 0.0, 0.0, logits * weight)
        else:
            right_sum += logits
    if wrong_scale is not None:
        lifted, lowered = algorithm_2_factors(bits, wrong_scale, M)
        right_sum = right_sum * lifted[:, None] + wrong_sum * lowered[:, None]
    if M > 1:
        right_sum *= 1.0 / M
    return right_sum, bits


@triton.jit
def at_temperature_1(softened, scaled, temperature, POWER: tl.constexpr):
    """The exponential at T = 1 of what is `softened` at T: for a whole T its T-th power, by squaring, without another one."""
    if POWER == 0:
        return tl.exp2(scaled * temperature)
    square = softened * softened
    fourth = square * square
    out = softened
    if POWER >= 4:
        out = fourth
    elif POWER >= 2:
        out = square
    if POWER == 3 or POWER == 5:
        out *= softened
    elif POWER == 6 or POWER == 7:
        out *= square
    elif POWER == 8:
        out *= fourth
    if POWER == 7:
        out *= softened
    return out


@triton.jit
def row_losses(
    origin, soft_sum, hard_sum, teacher_sum, gap, target, known, kept, weight, rate, temperature, hard_scale, soft_scale,
    HARD: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """hard, soft and total (with its row weight) of each row, from the row's statistics."""
    hard = tl.zeros(origin.shape, tl.float32)
    soft = tl.zeros(origin.shape, tl.float32)
    if HARD:
        # A label outside the row's classes has no loss: NaN says so, without a word to the host.
        own = tl.log2(hard_sum) - tl.fma(target, rate, -origin) * temperature
        hard = tl.where(known, own * LN_2, float("nan"))
        hard = tl.where(kept, hard, 0.0)
    if M > 0:
        soft = (gap / teacher_sum - tl.log2(teacher_sum) + tl.log2(soft_sum)) * LN_2
        soft = tl.where(kept, soft, 0.0)
    # A factor of 0 leaves a term out, so that an infinite one cannot turn into NaN.
    total = tl.where(hard_scale == 0.0, 0.0, hard_scale * hard) + tl.where(soft_scale == 0.0, 0.0, soft_scale * soft)
    return hard, soft, tl.where(weight == 0.0, 0.0, total * weight)


@triton.jit
def store_statistics(statistics, row, origin, soft_sum, hard_sum, rows, here, kept, N):
    """Statistics from number `row` on: an origin, and sums as reciprocals; 0 for an ignored row."""
    at = statistics + row * N + rows
    tl.store(at, tl.where(kept, origin, 0.0), mask=here)
    tl.store(at + N, tl.where(kept, 1.0 / soft_sum, 0.0), mask=here)
    if hard_sum is not None:
        tl.store(at + 2 * N, tl.where(kept, 1.0 / hard_sum, 0.0), mask=here)


@triton.jit
def store_losses(losses, loss, weight, rows, here, SUMS: tl.constexpr):
    """The losses of the rows, or only the sums over the program's rows of losses and of weights: [2, programs]."""
    if SUMS:
        tl.store(losses + tl.program_id(0), tl.sum(loss, 0))
        tl.store(losses + tl.num_programs(0) + tl.program_id(0), tl.sum(weight, 0))
    else:
        tl.store(losses + rows, loss, mask=here)


@triton.jit
def store_reduced(total, inverse, loss_sum, weight_sum, MEAN: tl.constexpr):
    """The objective, and what each row's gradient is multiplied by because of the reduction."""
    factor = 1.0
    if MEAN:
        factor = tl.where(weight_sum == 0.0, 0.0, 1.0 / tl.where(weight_sum == 0.0, 1.0, weight_sum))
    tl.store(total, loss_sum * factor)
    tl.store(inverse, factor)
