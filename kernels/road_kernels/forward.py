"""The loss and the statistics that its gradient needs, in one read of the logits.

Many rows of few classes share a program (`rows_kernel`); of more classes each row is read in lanes (`stream_kernel`), from
registers to vocabularies. No gradient is written here: in fp16 a gradient that has not yet seen the loss scale becomes zero
(a mean over 2,048 rows x 30,522 classes lost 66 % of its entries that way). The gradient kernel applies grad_output, in
float32, before it rounds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, plan
from .problem import Problem, Saved
from .rows import (
    LOG2_E,
    LOWEST,
    at_temperature_1,
    combined_tile,
    load_one,
    load_tile,
    row_facts,
    row_losses,
    store_losses,
    store_reduced,
    store_statistics,
    store_weights,
    whole_vectors,
)
from .stream import (
    lane_columns,
    lanes_step,
    load_lanes,
    merged_student,
    merged_teacher,
    mixed_lanes,
    present,
    right_teachers,
    spread,
)

# A row's statistics: the student's origin, its sums of exponentials at T and at 1, the teacher's origin, the teacher's sum;
# the sums are kept as reciprocals.


@triton.jit
def rows_kernel(
    student, s_row, s_class, teachers, t_rows, t_classes, labels, lengths, teacher_weights, row_weight,
    losses, hard, soft, statistics, judged, total, inverse,
    N, C, rate, temperature, hard_scale, soft_scale, wrong_scale, ignore_index,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, SUMS: tl.constexpr,
    MEAN: tl.constexpr,
):  # fmt: skip
    """Whole rows in registers. Run as a single program it goes through all rows and writes the objective, too."""
    loss_sum = tl.zeros([R], tl.float32)
    weight_sum = tl.zeros([R], tl.float32)
    columns = tl.arange(0, B)
    for start in range(tl.program_id(0) * R, N, tl.num_programs(0) * R):
        rows = (start + tl.arange(0, R)).to(tl.int64)
        here = rows < N
        label, classes, weight, kept = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
        known = kept & (label >= 0) & (label < classes)
        mask = here[:, None] & whole_vectors(classes, columns, VEC)
        valid = columns[None, :] < classes[:, None]

        logits = tl.where(valid, load_tile(student, s_row, s_class, rows, columns, mask, VEC), float("-inf"))
        target = load_one(student, s_row, s_class, rows, label, known, VEC)
        origin = tl.maximum(tl.max(logits, 1) * rate, LOWEST)
        scaled = tl.fma(logits, rate, -origin[:, None])
        softened = tl.exp2(scaled)
        soft_sum = tl.sum(softened, 1)
        hard_sum = tl.sum(at_temperature_1(softened, scaled, temperature, POWER), 1)
        store_statistics(statistics, 0, origin, soft_sum, hard_sum, rows, here, kept, N)
        teacher_sum = soft_sum
        gap = soft_sum
        if M > 0:
            mixture, bits = combined_tile(
                teachers, t_rows, t_classes, teacher_weights, wrong_scale, rows, columns, mask, valid, label, known, N, M, VEC
            )  # fmt: skip
            mixture = tl.where(valid, mixture, float("-inf"))
            teacher_origin = tl.maximum(tl.max(mixture, 1) * rate, LOWEST)
            teacher_scaled = tl.fma(mixture, rate, -teacher_origin[:, None])
            share = tl.exp2(teacher_scaled)
            teacher_sum = tl.sum(share, 1)
            # Where the teacher's share is 0 the term is 0, also when a logit is -inf.
            gap = tl.sum(share * tl.where(share > 0.0, teacher_scaled - scaled, 0.0), 1)
            store_statistics(statistics, 3, teacher_origin, teacher_sum, None, rows, here, kept, N)
            if wrong_scale is not None:
                store_weights(judged, bits, rows, here, wrong_scale, N, M)

        hard_row, soft_row, loss = row_losses(
            origin, soft_sum, hard_sum, teacher_sum, gap, target, known, kept, weight, rate, temperature,
            hard_scale, soft_scale, labels is not None, M,
        )  # fmt: skip
        tl.store(hard + rows, hard_row, mask=here)
        tl.store(soft + rows, soft_row, mask=here)
        if total is None:
            store_losses(losses, loss, weight, rows, here, SUMS)
        loss_sum += loss
        weight_sum += weight
    if total is not None:
        store_reduced(total, inverse, tl.sum(loss_sum, 0), tl.sum(weight_sum, 0), MEAN)


@triton.jit
def stream_kernel(
    student, s_row, s_class, teachers, t_rows, t_classes, labels, lengths, teacher_weights, row_weight,
    losses, hard, soft, statistics, judged,
    N, C, rate, temperature, hard_scale, soft_scale, wrong_scale, ignore_index,
    U: tl.constexpr, R: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """R rows, each read by T lanes: whole tiles first, then what is left under a mask. With wrong_scale teachers are read
    twice, first to see who is right; the second time they come from the cache."""
    rows = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    here = rows < N
    label, classes, weight, kept = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
    known = kept & (label >= 0) & (label < classes)
    inside = tl.minimum(rows, N - 1)
    lane_rows = spread(inside, R, T)
    lane_classes = spread(classes, R, T)
    target = load_one(student, s_row, s_class, inside, label, known, VEC)
    bits = tl.zeros([R], tl.int64)
    if wrong_scale is not None:
        bits = right_teachers(teachers, t_rows, t_classes, inside, label, known, C, lane_classes, R, T, VEC, M)
    lane_bits = spread(bits, R, T)

    nothing = tl.zeros([R * T], tl.float32)
    lowest = nothing + LOWEST
    student_lanes = (lowest, nothing, nothing)
    teacher_lanes = (lowest, nothing, nothing)
    whole = 0
    if lengths is None:
        whole = C // (U * T * VEC) * (U * T * VEC)
    for MASKED in tl.static_range(2):
        for start in range(whole * MASKED, C if MASKED else whole, U * T * VEC):
            tiles = ()
            mixtures = ()
            for u in tl.static_range(U):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                logits = load_lanes(student, s_row, s_class, lane_rows, columns, lane_classes, MASKED, VEC)
                tiles = tiles + (present(logits, columns, lane_classes, MASKED),)  # noqa: RUF005 (Triton knows no other way)
            for u in tl.static_range(U if M > 0 else 0):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                mixture = mixed_lanes(
                    teachers, t_rows, t_classes, teacher_weights, lane_bits, wrong_scale, lane_rows, columns, lane_classes, N,
                    MASKED, M, VEC,
                )  # fmt: skip
                mixtures = mixtures + (mixture,)  # noqa: RUF005
            student_lanes, teacher_lanes = lanes_step(
                tiles, mixtures, student_lanes, teacher_lanes, rate, temperature, U, POWER, M
            )

    row_origin, soft_sum, hard_sum, lane_moved = merged_student(
        tl.reshape(student_lanes[0], [R, T]), tl.reshape(student_lanes[1], [R, T]), tl.reshape(student_lanes[2], [R, T]),
        temperature, POWER,
    )  # fmt: skip
    store_statistics(statistics, 0, row_origin, soft_sum, hard_sum, rows, here, kept, N)
    teacher_sum = soft_sum
    gap = soft_sum
    if M > 0:
        row_teacher_origin, teacher_sum, gap = merged_teacher(
            tl.reshape(teacher_lanes[0], [R, T]), tl.reshape(teacher_lanes[1], [R, T]), tl.reshape(teacher_lanes[2], [R, T]),
            lane_moved,
        )  # fmt: skip
        store_statistics(statistics, 3, row_teacher_origin, teacher_sum, None, rows, here, kept, N)
        if wrong_scale is not None:
            store_weights(judged, bits, rows, here, wrong_scale, N, M)
    hard_row, soft_row, loss = row_losses(
        row_origin, soft_sum, hard_sum, teacher_sum, gap, target, known, kept, weight, rate, temperature,
        hard_scale, soft_scale, labels is not None, M,
    )  # fmt: skip
    tl.store(hard + rows, hard_row, mask=here)
    tl.store(soft + rows, soft_row, mask=here)
    store_losses(losses, loss, weight, rows, here, SUMS)


@triton.jit
def reduce_kernel(sums, total, inverse, programs, MEAN: tl.constexpr, B: tl.constexpr):
    """The objective from the sums of the programs, in a fixed order, by a single program."""
    loss_sum = tl.zeros([B], tl.float32)
    weight_sum = tl.zeros([B], tl.float32)
    for start in range(0, programs, B):
        at = start + tl.arange(0, B)
        loss_sum += tl.load(sums + at, mask=at < programs, other=0.0)
        weight_sum += tl.load(sums + programs + at, mask=at < programs, other=0.0)
    store_reduced(total, inverse, tl.sum(loss_sum, 0), tl.sum(weight_sum, 0), MEAN)


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Saved]:
    """total, hard, soft, and what the gradient needs."""
    student, teachers, reduction = problem.student, problem.teachers, problem.reduction
    N, C = student.shape
    M = len(teachers)
    statistics = torch.empty(plan.STATISTICS, N, dtype=torch.float32, device=student.device)
    hard, soft = statistics.new_empty(N), statistics.new_empty(N)
    inverse = statistics.new_empty(0 if reduction == "none" else ())
    wrong = problem.wrong_scale is not None
    judged = statistics.new_empty((M, N) if wrong else 0)
    vec = plan.vector_width(student, *teachers)
    few = C <= plan.LARGEST_SMALL
    tile = plan.row_tile(C, M, vec) if few else plan.stream_tile(C, M, vec, student.device)
    programs = plan.pieces(N, tile.rows)
    single = few and reduction != "none" and N <= plan.SINGLE_PROGRAM_ROWS
    total = statistics.new_empty(N if reduction == "none" else ())
    sums = None if single or reduction == "none" else statistics.new_empty(2, programs)
    losses = None if single else total if sums is None else sums
    given = (
        student, student.stride(0) // vec, student.stride(1), tuple(teachers), *launch.strides(teachers, vec),
        problem.labels, problem.lengths, problem.teacher_weights, problem.row_weight,
        losses, hard, soft, statistics, judged if wrong else None,
    )  # fmt: skip
    settings = (
        N, C, LOG2_E.value / problem.temperature, problem.temperature, problem.hard_scale, problem.soft_scale,
        problem.wrong_scale, problem.ignore_index,
    )  # fmt: skip
    shared = dict(
        VEC=vec,
        POWER=plan.whole_power(problem.temperature),
        M=M,
        SUMS=sums is not None,
        warps=tile.warps,
        registers=tile.registers,
    )
    mean = reduction == "mean"
    with launch.on_device(student):
        if isinstance(tile, plan.Stream):
            launch.start(
                stream_kernel, (programs,), *given, *settings, U=tile.groups, R=tile.rows, T=tile.lanes, **shared
            )  # fmt: skip
        else:
            launch.start(
                rows_kernel, (1 if single else programs,),
                *given, total if single else None, inverse if single else None, *settings,
                R=tile.rows, B=tile.classes, MEAN=mean, **shared,
            )  # fmt: skip
        if sums is not None:
            launch.start(reduce_kernel, (1,), sums, total, inverse, programs, MEAN=mean, B=2048, warps=8)
    return total, hard, soft, Saved(statistics, judged, inverse)
