"""Which tile a number of classes gets: the regimes, free of Triton so that they can be read and tested anywhere."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

REGIMES = {"hundreds": 1024, "thousands": 16384, "vocabulary": sys.maxsize}  # the largest number of classes of each
LARGEST_SMALL = 32  # classes up to which many rows share a program
SINGLE_PROGRAM_ROWS = (
    1024  # with so few small rows, one program also reduces them: one launch for the whole forward pass
)
MANY_TEACHERS = 3  # more of them take their share of the registers
MOST_WARPS = 16  # of 128 registers each thread: what an SM has
MOST_REGISTERS = 128  # a thread; without a limit ptxas now and then aims at a higher occupancy and spills a few bytes
STATISTICS = 5  # numbers per row that the forward pass keeps for the gradient
KEPT_LAUNCHES = 1024  # kinds of problems, exact in every size, whose launches are kept


class Stream(NamedTuple):
    """groups of loads and lanes that one program reads of each of its rows at a time; its warps, and registers a thread."""

    groups: int
    rows: int
    lanes: int
    warps: int
    registers: int = MOST_REGISTERS


class Tile(NamedTuple):
    """rows x classes that one program works on at a time, its number of warps, and registers a thread."""

    rows: int
    classes: int
    warps: int
    registers: int = MOST_REGISTERS


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


def regime(classes: int) -> str:
    """The name under which tiles for so many classes are measured and kept."""
    return next(name for name, most in REGIMES.items() if classes <= most)


@cache
def tuned() -> dict[str, dict[str, dict[str, list[int]]]]:
    """Compute capability -> kernel -> regime -> the numbers of its tile; made by benchmarks/tune_kernels.py."""
    return json.loads((Path(__file__).parent / "tiles.json").read_text())


@cache
def best(kernel: str, name: str, device: torch.device) -> list[int] | None:
    """What was fastest on a GPU like this one; None where nothing was measured."""
    if device.type != "cuda":
        return None
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return tuned().get(capability, {}).get(kernel, {}).get(name)


def measured(kernel: str, classes: int, teachers: int, vec: int, device: torch.device) -> list[int] | None:
    """The numbers of a tile, where they hold: loads of 8 elements, few teachers, more than a few classes."""
    if vec != 8 or teachers > MANY_TEACHERS or classes <= LARGEST_SMALL:
        return None
    return best(kernel, regime(classes), device)


def stream_tile(classes: int, teachers: int, vec: int, device: torch.device) -> Stream:
    """The tile of a row that is read in lanes: a warp for some hundred classes, four of them above."""
    most = 8 if regime(classes) == "vocabulary" else 4
    return lanes_tile("stream", most, classes, teachers, vec, device)


def combine_tile(classes: int, teachers: int, vec: int, device: torch.device) -> Stream:
    """The same for the combination; of a vocabulary few rows at a time, so that the second reading finds them in the L2 cache."""
    most = MOST_WARPS if regime(classes) == "vocabulary" else 4
    return lanes_tile("combine", most, classes, teachers, vec, device)


def lanes_tile(kernel: str, warps: int, classes: int, teachers: int, vec: int, device: torch.device) -> Stream:
    groups, registers = max(1, classes_per_thread(teachers, vec) // vec), MOST_REGISTERS
    lanes = 32 if regime(classes) == "hundreds" else 32 * warps
    found = measured(kernel, classes, teachers, vec, device)
    if found is not None:
        groups, lanes, warps, registers = found
    lanes = min(lanes, next_power_of_2(pieces(classes, groups * vec)))
    return Stream(groups, 32 * warps // lanes, lanes, warps, registers)


def gradient_tile(classes: int, teachers: int, vec: int, device: torch.device) -> Tile:
    """The tile of the elementwise kernels, which need no row as a whole."""
    # Of narrow loads more are needed under way; there is nothing that they would be kept for.
    each, warps, registers = classes_per_thread(teachers, 8 if teachers == 1 else vec), 4, MOST_REGISTERS
    found = measured("gradient", classes, teachers, vec, device)
    if found is not None:
        each, warps, registers = found
    width = next_power_of_2(classes)
    if classes <= LARGEST_SMALL:
        return row_tile(classes, teachers, vec)
    return tile_of(min(width, warps * 32 * each), warps, each)._replace(registers=registers)


class Layout(NamedTuple):
    """What a kernel is planned and compiled for of a tensor: everything but its place and its values."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    past: int  # bytes from a 16-byte boundary to the first value


def signature(tensor: Tensor | None) -> tuple | None:
    """A Layout's values, as fast as Python makes them: this is asked of every tensor at every call."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16


def layout(tensor: Tensor) -> Layout:
    return Layout(tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16)


def vector_width(*logits: Layout) -> int:
    """Elements that one load may take at once: 16 bytes of the widest dtype, if each row starts at such a boundary.

    A kernel masks whole vectors, never parts of one: a mask that may change inside a vector would split a 16-byte load
    into 2-byte loads. A row whose classes do not fill its last vector therefore reads up to 7 elements of its own
    padding, which are thrown away; they share an aligned 16-byte word with the row, so that memory is always mapped.
    """
    width = widest(*logits)
    for _, strides, _, past in logits:
        if strides[1] != 1 or past:
            return 1
        while strides[0] % width:
            width //= 2
    return width


def widest(*logits: Layout) -> int:
    return 16 // max(one.dtype.itemsize for one in logits)


def shifted(*logits: Layout) -> bool:
    """Whether rows start off 16-byte boundaries, all of them equally far, so that whole vectors around them can be read."""
    width = widest(*logits)
    off = {strides[0] % width for _, strides, _, _ in logits}
    return len(off) == 1 and off != {0} and all(one.strides[1] == 1 and not one.past for one in logits)


def padded_logits(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An empty [rows, classes] for logits like these."""
    return padded(like.shape[0], like.shape[1], dtype or like.dtype, like.device)


def padded(rows: int, classes: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty [rows, classes] whose rows start at 16-byte boundaries, so that whole vectors can be read and written.

    Rows of few classes stay dense: there a launch costs more than the bytes.
    """
    dense = classes <= LARGEST_SMALL or classes % 8 == 0
    made = torch.empty(rows, classes if dense else pieces(classes, 8) * 8, dtype=dtype, device=device)
    return made if dense else made[:, :classes]
