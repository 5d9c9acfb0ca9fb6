"""Which tile a number of classes gets: the regimes, free of Triton so that they can be read and tested anywhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_SMALL = 32  # classes up to which many rows share a program
SINGLE_PROGRAM_ROWS = (
    1024  # with so few small rows, one program also reduces them: one launch for the whole forward pass
)
MANY_TEACHERS = 3  # more of them take their share of the registers
MOST_WARPS = 16  # of 128 registers each thread: what an SM has
STATISTICS = 5  # numbers per row that the forward pass keeps for the gradient


class Stream(NamedTuple):
    """groups of loads and lanes that one program reads of each of its rows at a time, and its number of warps."""

    groups: int
    rows: int
    lanes: int
    warps: int


class Tile(NamedTuple):
    """rows x classes that one program works on at a time, and its number of warps."""

    rows: int
    classes: int
    warps: int


def next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


def pieces(number: int, size: int) -> int:
    return -(-number // size)


def whole_power(temperature: float) -> int:
    """T where the exponential at T = 1 is taken as a power of the one at T, else 0."""
    return int(temperature) if temperature in (1, 2, 3, 4, 5, 6, 7, 8) else 0


def classes_per_thread(teachers: int, vec: int) -> int:
    """Classes of a row that a thread holds without a spill: narrow loads need more addresses, teachers more values."""
    return 16 // (1 if teachers <= MANY_TEACHERS else 2) // (1 if vec == 8 else 2)


def fits_registers(classes: int, teachers: int, vec: int) -> bool:
    """Whether one program can hold a whole row: up to 8,192 classes, fewer with many teachers or narrow loads."""
    return next_power_of_2(classes) <= 32 * MOST_WARPS * classes_per_thread(teachers, vec)


def tile_of(width: int, most_warps: int, each: int) -> Tile:
    """A tile of `width` classes with `each` of them a thread; several rows a warp only where a row is small.

    There a thread also holds the facts of several rows, so that it gets half as many classes.
    """
    warps = min(most_warps, max(1, width // (32 * each)))
    return Tile(rows=max(1, 16 * each * warps // width), classes=width, warps=warps)


def row_tile(classes: int, teachers: int, vec: int) -> Tile:
    """The tile that holds whole rows, if they fit; one warp a row as far as that goes, many small rows a program."""
    each = classes_per_thread(teachers, vec)
    width = next_power_of_2(classes)
    if classes <= LARGEST_SMALL:
        return Tile(rows=min(64, 64 * each // width), classes=width, warps=4)
    return tile_of(width, MOST_WARPS, each)


def stream_tile(classes: int, teachers: int, vec: int, device: torch.device) -> Stream:
    """The tile of a row that is read in lanes: a warp for some hundred classes, four of them above."""
    groups = max(1, classes_per_thread(teachers, 8) // vec)
    warps = 4 if classes <= 16384 else 8
    most = 32 if classes <= 1024 else 32 * warps
    lanes = min(most, next_power_of_2(pieces(classes, groups * vec)))
    return Stream(groups, 32 * warps // lanes, lanes, warps)


def chunk_tile(teachers: int, vec: int) -> Tile:
    """The tile of one chunk of a row that does not fit."""
    each = classes_per_thread(teachers, vec)
    return tile_of(8 * 32 * each, 8, each)


def gradient_tile(classes: int, teachers: int, vec: int, device: torch.device) -> Tile:
    """The tile of the elementwise kernels, which need no row as a whole."""
    each = classes_per_thread(teachers, vec)
    width = next_power_of_2(classes)
    return row_tile(classes, teachers, vec) if width <= 4 * 32 * each else tile_of(4 * 32 * each, 4, each)


def vector_width(*logits: Tensor) -> int:
    """Elements that one load may take at once: 16 bytes of the widest dtype, if each row starts at such a boundary.

    A kernel masks whole vectors, never parts of one: a mask that may change inside a vector would split a 16-byte load
    into 2-byte loads. A row whose classes do not fill its last vector therefore reads up to 7 elements of its own
    padding, which are thrown away; they share an aligned 16-byte word with the row, so that memory is always mapped.
    """
    width = 16 // max(tensor.element_size() for tensor in logits)
    for tensor in logits:
        if tensor.stride(1) != 1 or tensor.data_ptr() % 16:
            return 1
        while tensor.stride(0) % width:
            width //= 2
    return width


def padded_logits(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [rows, classes] for logits like these."""
    return padded(like.shape[0], like.shape[1], dtype or like.dtype, like.device)


def padded(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty [rows, classes] whose rows start at 16-byte boundaries, so that whole vectors can be read and written.

    Rows of few classes stay dense: there a launch costs more than the bytes.
    """
    width = classes if classes <= LARGEST_SMALL else pieces(classes, 8) * 8
    return torch.empty(rows, width, dtype=dtype, device=device)[:, :classes]
