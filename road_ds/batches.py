"""The micro-batches of a run: how their rows are padded, and their assembly ahead of the step that needs them."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from road_ds.features import PAD_MULTIPLE, Batch, Features, collate, rounded_up
from road_ds.passes import Pass, Passes, micro_batches
from road_ds.ranks import Ranks

Item = TypeVar("Item")
Mode = Literal["free", "grouped", "fixed"]

BUCKET = 64  # tokens; the few widths for which a compiled encoder is built
END = object()


@dataclass(frozen=True)
class Padding:
    """How rows of different lengths become one batch.

    free: the encoder runs them as one sequence without padding; grouped: padded to the longest row, rounded up to a
    `multiple`; fixed: padded to the task's maximum. `limits` holds that maximum, in tokens, by data set.
    """

    mode: Mode
    pad_id: int
    limits: Mapping[str, int]
    multiple: int = PAD_MULTIPLE

    def width(self, dataset: str, longest: int) -> int:
        """The tokens of a padded row."""
        if self.mode == "fixed":
            return self.limits[dataset]
        return min(rounded_up(longest, self.multiple), rounded_up(self.limits[dataset]))

    def collate(self, source: Features, rows: np.ndarray) -> Batch:
        """The batch of some rows of a data set."""
        width = self.width(source.name, int(source.lengths[rows].max()))
        return collate(source, rows, self.pad_id, width=width, packed=self.mode == "free")

    def computed(self, dataset: str, lengths: np.ndarray) -> int:
        """The tokens that the encoder computes for micro-batches of rows of these lengths, [micro-batches, rows]."""
        if self.mode == "free":
            return int(lengths.sum())
        return sum(self.width(dataset, int(longest)) for longest in lengths.max(axis=1)) * lengths.shape[1]


def choose_padding(
    asked: str, obstacle: str, device: str, capability: tuple[int, int] | None, precision: str, compiled: bool
) -> tuple[Mode, str]:
    """The padding of a run, and why it is not the one asked for ("" when it is).

    obstacle: why the encoder cannot run packed rows, "" when it can; capability: the GPU's compute capability.
    """
    if asked in ("grouped", "fixed"):
        return asked, ""  # type: ignore[return-value]
    if device == "cuda" and (capability is None or capability < (8, 0)):
        obstacle = obstacle or "this GPU has no attention for packed rows (compute capability 8.0)"
    elif device == "cuda" and precision == "fp32":
        obstacle = obstacle or "a GPU's attention for packed rows takes bf16 or fp16, not fp32"
    elif compiled:
        obstacle = obstacle or "road.compile is built for batches of a few widths"
    if obstacle:
        return "grouped", f"road.padding is grouped, not free: {obstacle}"
    return "free", ""


def assemble(
    passes: Passes,
    sources: Mapping[str, Features],
    padding: Padding,
    ranks: Ranks,
    micro: int,
    steps: range,
) -> Iterator[tuple[list[Pass], list[Batch]]]:
    """For every step what was drawn, and this rank's micro-batches in the order of the draws, on the host."""
    for step in steps:
        drawn = passes.draw(step)
        batches = [
            padding.collate(sources[taken.dataset], rows)
            for taken in drawn
            for rows in micro_batches(taken.rows, micro, ranks.rank, ranks.world_size)
        ]
        yield drawn, [batch.pinned() for batch in batches] if ranks.device.type == "cuda" else batches


def ahead(items: Iterator[Item], count: int = 2) -> Iterator[Item]:
    """The same items in the same order, up to `count` of them made in a thread before they are asked for."""
    with ThreadPoolExecutor(1, "batches") as thread:  # one thread: the order is that of the calls
        waiting = deque(thread.submit(next, items, END) for _ in range(count))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(next, items, END))
            yield item  # type: ignore[misc]
