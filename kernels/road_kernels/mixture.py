"""Kernels of the teachers' combination (ROaD, Algorithm 2), and how they are launched."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch, plan
from .rows import (
    beats_label,
    combined_tile,
    load_one,
    load_tile,
    row_facts,
    store_weights,
    whole_vectors,
)


@triton.jit
def judge_kernel(
    teachers, t_rows, t_classes, labels, lengths, weights, N, C, wrong_scale, ignore_index,
    B: tl.constexpr, VEC: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Algorithm 2's weights [M, N] for rows too large for the registers: a program reads one row of every teacher."""
    rows = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    here = rows < N
    label, classes, _, kept = row_facts(labels, lengths, None, rows, here, C, ignore_index)
    known = kept & (label >= 0) & (label < classes)
    bits = tl.zeros([1], tl.int64)
    for m in tl.static_range(M):
        target = load_one(teachers[m], t_rows[m], t_classes[m], rows, label, known, VEC)
        beaten = tl.zeros([1, B], tl.int32)
        for start in range(0, C, B):
            columns = start + tl.arange(0, B)
            mask = kept[:, None] & whole_vectors(classes, columns, VEC)
            valid = kept[:, None] & (columns[None, :] < classes[:, None])
            logits = load_tile(teachers[m], t_rows[m], t_classes[m], rows, columns, mask, VEC)
            beaten = beaten | beats_label(logits, target, label, columns, valid).to(tl.int32)
        right = known & (tl.max(beaten, 1) == 0)
        bits += right.to(tl.int64) << m
    store_weights(weights, bits, rows, here, wrong_scale, N, M)


@triton.jit
def combine_kernel(
    teachers, t_rows, t_classes, labels, lengths, teacher_weights, out, out_row, N, C, tiles, wrong_scale,
    R: tl.constexpr, B: tl.constexpr, VEC: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The combined logits of one tile; whole rows if wrong_scale is given."""
    program = tl.program_id(0)
    rows = ((program // tiles) * R).to(tl.int64) + tl.arange(0, R)
    columns = (program % tiles) * B + tl.arange(0, B)
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


def judge(
    teachers: list[Tensor],
    labels: Tensor | None,
    lengths: Tensor | None,
    wrong_scale: float,
    ignore_index: int,
    weights: Tensor,
) -> Tensor:
    """Algorithm 2's weights, written into `weights` [M, N] and returned."""
    N, C = teachers[0].shape
    vec = plan.vector_width(*teachers)
    tile = plan.chunk_tile(len(teachers), vec)
    launch.start(
        judge_kernel, (N,),
        tuple(teachers), *launch.strides(teachers, vec), labels, lengths, weights, N, C, wrong_scale, ignore_index,
        B=tile.classes, VEC=vec, M=len(teachers), warps=tile.warps,
    )  # fmt: skip
    return weights


def combine(
    teachers: list[Tensor],
    labels: Tensor | None,
    lengths: Tensor | None,
    teacher_weights: Tensor | None,
    wrong_scale: float | None,
    out: Tensor,
) -> Tensor:
    """The combined logits, written into `out` [N, C], whose rows plan.padded_logits has laid out, and returned."""
    N, C = out.shape
    M = len(teachers)
    vec = plan.vector_width(out, *teachers)
    with launch.on_device(out):
        if wrong_scale is not None and not plan.fits_registers(C, M, vec):
            weights = torch.empty(M, N, dtype=torch.float32, device=out.device)
            teacher_weights, wrong_scale = judge(teachers, labels, lengths, wrong_scale, -1, weights), None
        tile = plan.gradient_tile(C, M, vec, out.device) if wrong_scale is None else plan.row_tile(C, M, vec)
        tiles = plan.pieces(C, tile.classes)
        launch.start(
            combine_kernel, (plan.pieces(N, tile.rows) * tiles,),
            tuple(teachers), *launch.strides(teachers, vec), labels if wrong_scale is not None else None, lengths, teacher_weights,
            out, out.stride(0) // vec, N, C, tiles, wrong_scale,
            R=tile.rows, B=tile.classes, VEC=vec, M=M, warps=tile.warps,
        )  # fmt: skip
    return out
