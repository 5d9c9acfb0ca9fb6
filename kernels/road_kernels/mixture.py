"""Kernels of the teachers' combination (ROaD, Algorithm 2), and how they are launched."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import plan
from .launch import Launch
from .plan import Layout
from .rows import combined_tile, row_facts, whole_vectors
from .stream import lane_columns, mixed_lanes, right_teachers, spread


@triton.jit
def combine_rows_kernel(
    teachers, labels, lengths, teacher_weights, out, wrong_scale, t_rows, t_classes, out_row, N, C,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Many rows of few classes."""
    rows = (tl.program_id(0) * R).to(tl.int64) + tl.arange(0, R)
    columns = tl.arange(0, B)
    here = rows < N
    # An ignored row is combined like any other: its label is no class, so no teacher is right.
    label, classes, _, _ = row_facts(labels, lengths, None, rows, here, C, -1)
    known = here & (label >= 0) & (label < classes)
    mask = here[:, None] & whole_vectors(classes, columns, VEC)
    valid = columns[None, :] < classes[:, None]
    mixture, _ = combined_tile(
        teachers, t_rows, t_classes, teacher_weights, wrong_scale, rows, columns, mask, valid, label, known, N, M, VEC
    )
    mixture = tl.where(valid, mixture, float("-inf"))
    at = (rows * out_row * VEC)[:, None] + columns[None, :]
    stored = here[:, None] & whole_vectors(tl.zeros([R], tl.int32) + C, columns, VEC)
    tl.store(out + at, mixture.to(out.dtype.element_ty), mask=stored)


@triton.jit
def combine_stream_kernel(
    teachers, labels, lengths, teacher_weights, out, wrong_scale, t_rows, t_classes, out_row, N, C,
    U: tl.constexpr, R: tl.constexpr, T: tl.constexpr, VEC: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """R rows, each read by T lanes; with wrong_scale first to see who is right, the second time from the cache."""
    rows = (tl.program_id(0) * R + tl.arange(0, R)).to(tl.int64)
    here = rows < N
    label, classes, _, _ = row_facts(labels, lengths, None, rows, here, C, -1)
    known = here & (label >= 0) & (label < classes)
    inside = tl.minimum(rows, N - 1)
    lane_rows = spread(inside, R, T)
    lane_here = spread(here, R, T)
    end = spread(classes, R, T)
    nowhere = tl.zeros([R * T], tl.int32)
    bits = tl.zeros([R], tl.int64)
    if wrong_scale is not None:
        bits = right_teachers(
            teachers, t_rows, t_classes, inside, label, known, C, nowhere, end, U, R, T, VEC, M, False
        )
    lane_bits = spread(bits, R, T)
    whole = 0
    if lengths is None:
        whole = C // (U * T * VEC) * (U * T * VEC)
    for part in tl.static_range(2):
        for start in range(whole * part, C if part == 1 else whole, U * T * VEC):
            mixtures = ()
            for u in tl.static_range(U):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                mixture = mixed_lanes(
                    teachers, t_rows, t_classes, teacher_weights, lane_bits, wrong_scale, lane_rows, columns, nowhere, end, N,
                    part == 1, M, VEC, False,
                )  # fmt: skip
                mixtures = mixtures + (mixture,)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no other way)
            for u in tl.static_range(U):
                columns = lane_columns(start + u * T * VEC, R, T, VEC)
                stored = lane_here[:, None] & ((columns // VEC) < ((C + (VEC - 1)) // VEC))
                at = (lane_rows * out_row * VEC)[:, None] + columns
                tl.store(out + at, mixtures[u].to(out.dtype.element_ty), mask=stored)


@lru_cache(plan.KEPT_LAUNCHES)
def combination(device: torch.device, signatures: tuple, facts: tuple, judged: bool, combined: tuple) -> Launch:
    out, teachers = Layout(*combined), [Layout(*one) for one in signatures]
    N, C = out.shape
    M = len(teachers)
    vec = plan.vector_width(out, *teachers)
    rows, classes = tuple(one.strides[0] // vec for one in teachers), tuple(one.strides[1] for one in teachers)
    last = rows, classes, out.strides[0] // vec, N, C
    tile = plan.row_tile(C, M, vec) if C <= plan.LARGEST_SMALL else plan.combine_tile(C, M, vec, device)
    options = dict(VEC=vec, M=M, warps=tile.warps, registers=tile.registers)
    programs = plan.pieces(N, tile.rows)
    if isinstance(tile, plan.Stream):
        sizes = dict(U=tile.groups, R=tile.rows, T=tile.lanes)
        return Launch(device, combine_stream_kernel, programs, *last, **sizes, **options)
    return Launch(device, combine_rows_kernel, programs, *last, R=tile.rows, B=tile.classes, **options)


def combine(
    teachers: list[Tensor],
    labels: Tensor | None,
    lengths: Tensor | None,
    teacher_weights: Tensor | None,
    wrong_scale: float | None,
    out: Tensor,
) -> Tensor:
    """The combined logits, written into `out` [N, C], whose rows plan.padded_logits has laid out, and returned."""
    facts = labels if wrong_scale is not None else None, lengths, teacher_weights
    signatures = [tuple([plan.signature(one) for one in tensors]) for tensors in (teachers, facts)]
    start = combination(out.device, *signatures, wrong_scale is not None, plan.signature(out))
    start(tuple(teachers), *facts, out, wrong_scale)
    return out
