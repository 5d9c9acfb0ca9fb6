"""The loss and the statistics that its gradient needs, in one read of the logits.

Many rows of few classes share a program (`rows_kernel`); of more classes each row is read in lanes (`stream_kernel`), from
registers to vocabularies. No gradient is written here: in fp16 a gradient that has not yet seen the loss scale becomes zero
(a mean over 2,048 rows x 30,522 classes lost 66 % of its entries that way). The gradient kernel applies grad_output, in
float32, before it rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .launch import Launch
from .plan import Layout
from .problem import Kind, Problem
from .rows import (
    LOG2_E,
    LOWEST,
    at_temperature_1,
    combined_tile,
    load_one,
    load_tile,
    row_facts,
    row_losses,
    saved_weights,
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
    row_shift,
    spread,
)

# A row's statistics: the student's origin, its sums of exponentials at T and at 1, the teacher's origin, the teacher's sum;
# the sums are kept as reciprocals.


@triton.jit
def rows_kernel(
    student, teachers, labels, lengths, teacher_weights, row_weight, losses, hard, soft, saved, total,
    rate, temperature, hard_scale, soft_scale, wrong_scale, s_row, s_class, t_rows, t_classes, N, C, ignore_index,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, SUMS: tl.constexpr,
    KEPT: tl.constexpr, MEAN: tl.constexpr,
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
        store_statistics(saved, 0, origin, soft_sum, hard_sum, rows, here, kept, N)
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
            store_statistics(saved, 3, teacher_origin, teacher_sum, None, rows, here, kept, N)
            if wrong_scale is not None:
                store_weights(saved_weights(saved, N), bits, rows, here, wrong_scale, N, M)

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
        store_reduced(total, saved + KEPT * N, tl.sum(loss_sum, 0), tl.sum(weight_sum, 0), MEAN)


@triton.jit
def merged_lanes(
    student, teacher, saved, rows, here, kept, temperature, N, R: tl.constexpr, T: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """The rows' statistics [R] from those of their lanes, as `lanes_step` has them; stored for the gradient, too."""
    origin, soft_sum, hard_sum, moved = merged_student(
        tl.reshape(student[0], [R, T]),
        tl.reshape(student[1], [R, T]),
        tl.reshape(student[2], [R, T]),
        temperature,
        POWER,
    )
    store_statistics(saved, 0, origin, soft_sum, hard_sum, rows, here, kept, N)
    teacher_sum = soft_sum
    gap = soft_sum
    if M > 0:
        teacher_origin, teacher_sum, gap = merged_teacher(
            tl.reshape(teacher[0], [R, T]), tl.reshape(teacher[1], [R, T]), tl.reshape(teacher[2], [R, T]), moved
        )
        store_statistics(saved, 3, teacher_origin, teacher_sum, None, rows, here, kept, N)
    return origin, soft_sum, hard_sum, teacher_sum, gap


@triton.jit
def stream_kernel(
    student, teachers, labels, lengths, teacher_weights, row_weight, losses, hard, soft, saved,
    rate, temperature, hard_scale, soft_scale, wrong_scale, s_row, s_class, t_rows, t_classes, N, C, ignore_index,
    U: tl.constexpr, R: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr, POWER: tl.constexpr, M: tl.constexpr, SUMS: tl.constexpr,
    SHIFTED: tl.constexpr,
):  # fmt: skip
    """R rows, each read by T lanes: whole tiles first, then what is left under a mask; SHIFTED rows begin with a masked tile, too.
    With wrong_scale teachers are read twice, first to see who is right; the second time they come from the cache."""
    rows = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    here = rows < N
    label, classes, weight, kept = row_facts(labels, lengths, row_weight, rows, here, C, ignore_index)
    known = kept & (label >= 0) & (label < classes)
    inside = tl.minimum(rows, N - 1)
    lane_rows = spread(inside, R, T)
    shift = row_shift(lane_rows, s_row, VEC, SHIFTED)
    end = spread(classes, R, T) + shift
    target = load_one(student, s_row, s_class, inside, label, known, 1 if SHIFTED else VEC)
    bits = tl.zeros([R], tl.int64)
    if wrong_scale is not None:
        bits = right_teachers(
            teachers, t_rows, t_classes, inside, label, known, C, shift, end, U, R, T, VEC, M, SHIFTED
        )
    lane_bits = spread(bits, R, T)

    nothing = tl.zeros([R * T], tl.float32)
    lowest = nothing + LOWEST
    student_lanes = (lowest, nothing, nothing)
    teacher_lanes = (lowest, nothing, nothing)
    step: tl.constexpr = U * T * VEC
    first = 0
    whole = 0
    if lengths is None:
        whole = C // step * step
        if SHIFTED:
            first = step
            whole = tl.maximum(whole, first)
    for part in tl.static_range(0 if SHIFTED else 1, 3):  # all but the middle one masked
        begin = 0 if part == 0 else first if part == 1 else whole
        stop = first if part == 0 else whole if part == 1 else C + (VEC - 1 if SHIFTED else 0)
        for start in range(begin, stop, step):
            tiles = ()
            mixtures = ()
            for u in tl.static_range(U):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                logits = load_lanes(student, s_row, s_class, lane_rows, columns, end, part != 1, VEC, SHIFTED)
                tiles = tiles + (present(logits, columns, shift, end, part != 1, SHIFTED),)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no other way)
            for u in tl.static_range(U if M > 0 else 0):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                mixture = mixed_lanes(
                    teachers, t_rows, t_classes, teacher_weights, lane_bits, wrong_scale, lane_rows, columns, shift, end, N,
                    part != 1, M, VEC, SHIFTED,
                )  # fmt: skip
                mixtures = mixtures + (mixture,)  # type: ignore[assignment]  # noqa: RUF005
            student_lanes, teacher_lanes = lanes_step(
                tiles, mixtures, student_lanes, teacher_lanes, rate, temperature, U, POWER, M
            )

    row_origin, soft_sum, hard_sum, teacher_sum, gap = merged_lanes(
        student_lanes, teacher_lanes, saved, rows, here, kept, temperature, N, R, T, POWER, M
    )
    if M > 0 and wrong_scale is not None:
        store_weights(saved_weights(saved, N), bits, rows, here, wrong_scale, N, M)
    hard_row, soft_row, loss = row_losses(
        row_origin, soft_sum, hard_sum, teacher_sum, gap, target, known, kept, weight, rate, temperature,
        hard_scale, soft_scale, labels is not None, M,
    )  # fmt: skip
    tl.store(hard + rows, hard_row, mask=here)
    tl.store(soft + rows, soft_row, mask=here)
    store_losses(losses, loss, weight, rows, here, SUMS)


@triton.jit
def reduce_kernel(sums, total, saved, programs, N, KEPT: tl.constexpr, MEAN: tl.constexpr, B: tl.constexpr):
    """The objective from the sums of the programs, in a fixed order, by a single program."""
    loss_sum = tl.zeros([B], tl.float32)
    weight_sum = tl.zeros([B], tl.float32)
    for start in range(0, programs, B):
        at = start + tl.arange(0, B)
        loss_sum += tl.load(sums + at, mask=at < programs, other=0.0)
        weight_sum += tl.load(sums + programs + at, mask=at < programs, other=0.0)
    store_reduced(total, saved + KEPT * N, tl.sum(loss_sum, 0), tl.sum(weight_sum, 0), MEAN)


class Launches(NamedTuple):
    """What a kind of problem starts, and the sizes of what that writes."""

    main: Launch
    reduce: Launch | None
    saved: int
    total: tuple[int, ...]
    sums: tuple[int, ...] | None  # losses and weights of each program; None: the main launch writes `total`
    small: bool
    single: bool


@lru_cache(plan.KEPT_LAUNCHES)
def launches(signature: tuple) -> Launches:
    kind = Kind.of(signature)
    N, C = kind.student.shape
    M = len(kind.teachers)
    logits = (kind.student, *kind.teachers)
    few = C <= plan.LARGEST_SMALL
    shifted = not few and plan.shifted(*logits)
    vec = plan.widest(*logits) if shifted else plan.vector_width(*logits)
    tile = plan.row_tile(C, M, vec) if few else plan.stream_tile(C, M, vec, kind.device)
    programs = plan.pieces(N, tile.rows)
    reduced = kind.reduction != "none"
    single = few and reduced and N <= plan.SINGLE_PROGRAM_ROWS
    sums = (2, programs) if reduced and not single else None
    mean = kind.reduction == "mean"
    last = *strides(kind.student, kind.teachers, 1 if shifted else vec), N, C, kind.ignore_index
    shared = dict(VEC=vec, POWER=kind.power, M=M, SUMS=sums is not None)
    options = dict(warps=tile.warps, registers=tile.registers)
    if isinstance(tile, plan.Stream):
        sizes = dict(U=tile.groups, R=tile.rows, T=tile.lanes, SHIFTED=shifted)
        main = Launch(kind.device, stream_kernel, programs, *last, **sizes, **shared, **options)
    else:
        sizes = dict(R=tile.rows, B=tile.classes)
        main = Launch(
            kind.device,
            rows_kernel,
            1 if single else programs,
            *last,
            **sizes,
            **shared,
            KEPT=kind.kept(),
            MEAN=mean,
            **options,
        )
    reduce = Launch(
        kind.device,
        reduce_kernel,
        1,
        programs,
        N,
        KEPT=kind.kept(),
        MEAN=mean,
        B=2048,
        warps=8,
        registers=plan.MOST_REGISTERS,
    )
    return Launches(main, reduce if sums else None, kind.saved(), () if reduced else (N,), sums, few, single)


def strides(student: Layout, teachers: Sequence[Layout], vec: int) -> tuple:
    """Row strides in vectors and class strides in elements, as the kernels take them."""
    return (
        student.strides[0] // vec, student.strides[1],
        tuple(one.strides[0] // vec for one in teachers), tuple(one.strides[1] for one in teachers),
    )  # fmt: skip


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """total, hard, soft, and what the gradient needs (Kind.saved)."""
    student, teachers, labels, lengths, teacher_weights, row_weight, temperature, *scales, _, _ = problem
    prepared = launches(problem.signature())
    saved = torch.empty(prepared.saved, dtype=torch.float32, device=student.device)
    hard, soft = saved.new_empty(student.shape[0]), saved.new_empty(student.shape[0])
    total = saved.new_empty(prepared.total)
    losses = None if prepared.single else total if prepared.sums is None else saved.new_empty(prepared.sums)
    given = student, tuple(teachers), labels, lengths, teacher_weights, row_weight, losses, hard, soft, saved
    numbers = LOG2_E.value / temperature, temperature, *scales
    if prepared.small:
        prepared.main(*given, total if prepared.single else None, *numbers)
    else:
        prepared.main(*given, *numbers)
    if prepared.reduce is not None:
        prepared.reduce(losses, total, saved)
    return total, hard, soft, saved
