"""Which tile a number of classes gets: the regimes, free of Triton so that they can be read and tested anywhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_ROW = 8192  # classes that one program holds in registers without a spill
CHUNK = 4096  # classes of a larger row that one program reads
GRADIENT_CHUNK = 2048
LARGEST_SMALL = 32  # classes up to which many rows share a program
MANY_TEACHERS = 3
SINGLE_PROGRAM_ROWS = (
    1024  # with so few small rows, one program also reduces them: one launch for the whole forward pass
)
STATISTICS = 5  # numbers per row that the forward pass keeps for the gradient


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


def row_tile(classes: int, teachers: int) -> Tile:
    """The tile that holds whole rows of up to LARGEST_ROW classes.

    A thread holds 16 classes of a row, 8 where many teachers take their share of the registers or rows are small:
    there each load needs an address of its own.
    """
    width = next_power_of_2(classes)
    if classes <= LARGEST_SMALL:
        return Tile(rows=min(64, 1024 // width), classes=width, warps=4)
    each = 16 if teachers <= MANY_TEACHERS else 8
    warps = min(16, max(1, width // (32 * each)))
    return Tile(rows=max(1, 32 * each * warps // width), classes=width, warps=warps)


def chunk_tile(classes: int, teachers: int) -> Tile:
    """The tile of one chunk of a row: the whole row where it fits, else CHUNK classes."""
    return row_tile(classes, teachers) if classes <= LARGEST_ROW else Tile(rows=1, classes=CHUNK, warps=8)


def gradient_tile(classes: int, teachers: int) -> Tile:
    """The tile of the gradient kernel, which needs no row as a whole."""
    return row_tile(classes, teachers) if classes <= 1024 else Tile(rows=1, classes=GRADIENT_CHUNK, warps=4)


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
    """An empty [rows, classes] whose rows start at 16-byte boundaries, so that whole vectors can be written.

    Rows of few classes stay dense: there a launch costs more than the bytes.
    """
    rows, classes = like.shape
    width = classes if classes <= LARGEST_SMALL else pieces(classes, 8) * 8
    return torch.empty(rows, width, dtype=dtype or like.dtype, device=like.device)[:, :classes]
