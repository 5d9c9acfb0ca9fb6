"""The loss and the statistics that its gradient needs, in one read of the logits.

Where a row fits, a program holds it whole in registers (`rows_kernel`). Larger rows are read chunk by chunk, each
chunk by its own program (`chunk_kernel`), and `merge_kernel` puts the chunks' statistics together. No gradient is written
here: in fp16 a gradient that has not yet seen the loss scale becomes zero (a mean over 2,048 rows x 30,522 classes lost 66 %
of its entries that way). The gradient kernel applies grad_output, in float32, before it rounds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, plan
from .mixture import judge
from .rows import (
    LOG2_E,
    at_temperature_1,
    combined_tile,
    kept_rows,
    load_one,
    load_tile,
    row_facts,
    row_losses,
    store_reduced,
    store_statistics,
    store_weights,
    student_statistics,
    teacher_statistics,
    whole_vectors,
)

# A row's statistics: student maximum, its sums of exponentials at T and at 1, teacher maximum, teacher sum; the sums are
# kept as reciprocals. A chunk's partial statistics: the same with the sums as they are, and the gap.
PARTIALS = plan.STATISTICS + 1


@triton.jit
def rows_kernel(
    student, s_row, s_class, teachers, t_rows, t_classes, labels, lengths, teacher_weights, row_weight,
    losses, hard, soft, statistics, judged, total, inverse,
    N, C, rate, hard_scale, soft_scale, wrong_scale, ignore_index,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, MEAN: tl.constexpr,
):  # fmt: skip
    """Whole rows in registers. Run as a single program it goes through all rows and writes the objective, too."""
    loss_sum = tl.zeros([R], tl.float32)
    weight_sum = tl.zeros([R], tl.float32)
    columns = tl.arange(0, B)
    for start in range(tl.program_id(0) * R, N, tl.num_programs(0) * R):
        rows = (start + tl.arange(0, R)).to(tl.int64)
        here = rows < N
        kept = kept_rows(labels, rows, here, ignore_index)
        label, classes, weight = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
        known = kept & (label >= 0) & (label < classes)
        mask = kept[:, None] & whole_vectors(classes, columns, VEC)
        valid = kept[:, None] & (columns[None, :] < classes[:, None])

        logits = load_tile(student, s_row, s_class, rows, columns, mask, VEC)
        top, scaled, soft_sum, hard_sum = student_statistics(logits, valid, rate, POWER)
        target = load_one(student, s_row, s_class, rows, label, known, VEC)
        store_statistics(statistics, 0, top, soft_sum, hard_sum, rows, here, kept, N)
        teacher_sum = soft_sum
        gap = soft_sum
        if M > 0:
            mixture, bits = combined_tile(
                teachers, t_rows, t_classes, teacher_weights, wrong_scale, rows, columns, mask, valid, label, known, N, M, VEC
            )  # fmt: skip
            teacher_top, teacher_sum, gap = teacher_statistics(mixture, valid, scaled, rate)
            store_statistics(statistics, 3, teacher_top, teacher_sum, None, rows, here, kept, N)
            if wrong_scale is not None:
                store_weights(judged, bits, rows, here, wrong_scale, N, M)

        hard_row, soft_row, loss = row_losses(
            top, soft_sum, hard_sum, teacher_sum, gap, target, known, kept, weight, hard_scale, soft_scale,
            labels is not None, M,
        )  # fmt: skip
        tl.store(hard + rows, hard_row, mask=here)
        tl.store(soft + rows, soft_row, mask=here)
        if losses is not None:
            tl.store(losses + rows, loss, mask=here)
        loss_sum += loss
        weight_sum += weight
    if total is not None:
        store_reduced(total, inverse, tl.sum(loss_sum, 0), tl.sum(weight_sum, 0), MEAN)


@triton.jit
def chunk_kernel(
    student, s_row, s_class, teachers, t_rows, t_classes, labels, lengths, teacher_weights, partials,
    N, C, chunks, rate, ignore_index,
    B: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The statistics of one chunk of one row, as if the chunk were all there is: partials [PARTIALS, N, chunks]."""
    program = tl.program_id(0)
    chunk = program % chunks
    rows = (program // chunks).to(tl.int64) + tl.arange(0, 1)
    columns = chunk * B + tl.arange(0, B)
    here = rows < N
    kept = kept_rows(labels, rows, here, ignore_index)
    label, classes, _ = row_facts(labels, lengths, None, rows, here, C, ignore_index)
    mask = kept[:, None] & whole_vectors(classes, columns, VEC)
    valid = kept[:, None] & (columns[None, :] < classes[:, None])
    at = partials + rows * chunks + chunk
    size = N * chunks

    logits = load_tile(student, s_row, s_class, rows, columns, mask, VEC)
    top, scaled, soft_sum, hard_sum = student_statistics(logits, valid, rate, POWER)
    tl.store(at, top)
    tl.store(at + size, soft_sum)
    tl.store(at + 2 * size, hard_sum)
    if M > 0:
        mixture, _ = combined_tile(
            teachers, t_rows, t_classes, teacher_weights, None, rows, columns, mask, valid, label, kept, N, M, VEC
        )
        teacher_top, teacher_sum, gap = teacher_statistics(mixture, valid, scaled, rate)
        tl.store(at + 3 * size, teacher_top)
        tl.store(at + 4 * size, teacher_sum)
        tl.store(at + 5 * size, gap)


@triton.jit
def merge_kernel(
    student, s_row, s_class, labels, lengths, row_weight, partials, losses, hard, soft, statistics,
    N, C, chunks, rate, hard_scale, soft_scale, ignore_index,
    R: tl.constexpr, K: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Row losses and statistics from those of the row's chunks."""
    rows = (tl.program_id(0) * R).to(tl.int64) + tl.arange(0, R)
    here = rows < N
    kept = kept_rows(labels, rows, here, ignore_index)
    label, classes, weight = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
    known = kept & (label >= 0) & (label < classes)
    chunk = tl.arange(0, K)
    valid = here[:, None] & (chunk < chunks)[None, :]
    at = partials + (rows * chunks)[:, None] + chunk[None, :]
    size = N * chunks

    tops = tl.load(at, mask=valid, other=float("-inf"))
    top = tl.max(tops, 1)
    below = tops - top[:, None]
    soft_share = tl.exp2(below * rate)
    hard_share = at_temperature_1(soft_share, below, POWER)
    soft_sum = tl.sum(soft_share * tl.load(at + size, mask=valid, other=0.0), 1)
    hard_sum = tl.sum(hard_share * tl.load(at + 2 * size, mask=valid, other=0.0), 1)
    store_statistics(statistics, 0, top, soft_sum, hard_sum, rows, here, kept, N)
    teacher_sum = soft_sum
    gap = soft_sum
    if M > 0:
        teacher_tops = tl.load(at + 3 * size, mask=valid, other=float("-inf"))
        teacher_top = tl.max(teacher_tops, 1)
        teacher_below = (teacher_tops - teacher_top[:, None]) * rate
        share = tl.exp2(teacher_below)
        sums = tl.load(at + 4 * size, mask=valid, other=0.0)
        gaps = tl.load(at + 5 * size, mask=valid, other=0.0)
        teacher_sum = tl.sum(share * sums, 1)
        # A chunk's gap is relative to its own maxima; one without any teacher share says nothing.
        moved = share * (gaps + sums * (teacher_below - below * rate))
        gap = tl.sum(tl.where(share * sums > 0.0, moved, 0.0), 1)
        store_statistics(statistics, 3, teacher_top, teacher_sum, None, rows, here, kept, N)

    target = load_one(student, s_row, s_class, rows, label, known, VEC)
    hard_row, soft_row, loss = row_losses(
        top, soft_sum, hard_sum, teacher_sum, gap, target, known, kept, weight, hard_scale, soft_scale,
        labels is not None, M,
    )  # fmt: skip
    tl.store(hard + rows, hard_row, mask=here)
    tl.store(soft + rows, soft_row, mask=here)
    tl.store(losses + rows, loss, mask=here)


@triton.jit
def reduce_kernel(
    losses, labels, row_weight, total, inverse, N, ignore_index, MEAN: tl.constexpr, B: tl.constexpr
):  # fmt: skip
    """The objective from the row losses, in a fixed order, by a single program."""
    loss_sum = tl.zeros([B], tl.float32)
    weight_sum = tl.zeros([B], tl.float32)
    for start in range(0, N, B):
        rows = start + tl.arange(0, B)
        here = rows < N
        _, _, weight = row_facts(labels, None, row_weight, rows, here, 1, ignore_index)
        loss_sum += tl.load(losses + rows, mask=here, other=0.0)
        weight_sum += weight
    store_reduced(total, inverse, tl.sum(loss_sum, 0), tl.sum(weight_sum, 0), MEAN)


def forward(
    student: Tensor,
    teachers: list[Tensor],
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
    """total, hard, soft, and for the gradient: statistics [5, N], weights [M, N] or [0], the inverse of the divisor or [0]."""
    N, C = student.shape
    M = len(teachers)
    statistics = torch.empty(plan.STATISTICS, N, dtype=torch.float32, device=student.device)
    losses, hard, soft = (statistics.new_empty(N) for _ in range(3))
    total, inverse = statistics.new_empty(()), statistics.new_empty(0 if reduction == "none" else ())
    judged = statistics.new_empty((M, N) if wrong_scale is not None else 0)
    vec = plan.vector_width(student, *teachers)
    student_strides = student.stride(0) // vec, student.stride(1)
    rate = LOG2_E.value / temperature
    scales = hard_scale, soft_scale
    whole = plan.fits_registers(C, M, vec)
    tile = plan.row_tile(C, M, vec) if whole else plan.chunk_tile(M, vec)
    shared = dict(VEC=vec, POWER=plan.whole_power(temperature), M=M)

    with launch.on_device(student):
        if whole:
            single = reduction != "none" and C <= plan.LARGEST_SMALL and N <= plan.SINGLE_PROGRAM_ROWS
            launch.start(
                rows_kernel, (1 if single else plan.pieces(N, tile.rows),),
                student, *student_strides, tuple(teachers), *launch.strides(teachers, vec), labels, lengths, teacher_weights, row_weight,
                None if single else losses, hard, soft, statistics, judged if wrong_scale is not None else None,
                total if single else None, inverse if single else None,
                N, C, rate, *scales, wrong_scale, ignore_index,
                R=tile.rows, B=tile.classes, MEAN=reduction == "mean", warps=tile.warps, **shared,
            )  # fmt: skip
        else:
            single = False
            if wrong_scale is not None:
                teacher_weights = judge(teachers, labels, lengths, wrong_scale, ignore_index, judged)
            chunks = plan.pieces(C, tile.classes)
            partials = statistics.new_empty(PARTIALS, N, chunks)
            launch.start(
                chunk_kernel, (N * chunks,),
                student, *student_strides, tuple(teachers), *launch.strides(teachers, vec), labels, lengths, teacher_weights, partials,
                N, C, chunks, rate, ignore_index,
                B=tile.classes, warps=tile.warps, **shared,
            )  # fmt: skip
            width = plan.next_power_of_2(chunks)
            per_program = max(1, 64 // width)  # two chunks a thread, six numbers each
            launch.start(
                merge_kernel, (plan.pieces(N, per_program),),
                student, *student_strides, labels, lengths, row_weight, partials, losses, hard, soft, statistics,
                N, C, chunks, rate, *scales, ignore_index,
                R=per_program, K=width, warps=1, **shared,
            )  # fmt: skip
        if reduction == "none":
            return losses, hard, soft, statistics, judged, inverse
        if not single:
            launch.start(
                reduce_kernel, (1,), losses, labels, row_weight, total, inverse, N, ignore_index,
                MEAN=reduction == "mean", B=1024, warps=4,
            )  # fmt: skip
    return total, hard, soft, statistics, judged, inverse
