"""The micro-batches of a run: how their rows are padded, and their assembly ahead of the step that needs them."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from road_ds.common.ranks import Ranks
from road_ds.data.batch import Batch, Features, collate, rounded_up
from road_ds.data.passes import Pass, Passes, micro_batches

Item = TypeVar("Item")
Mode = Literal["free", "grouped", "fixed"]

Draw = Callable[[Batch, Sequence[int], np.ndarray], Batch]  # as `Task.draw`

TRAINED = 2  # in the key of what is drawn for rows in training: Passes has 0 and 1
END = object()
# Padded places of a joined pass by the tokens of the heaviest micro-batch; they hold one tensor, a token's activations dozens.
PADDED = 4


@dataclass(frozen=True)
class Padding:
    """How rows of different lengths become one batch.

    free: the encoder runs them as one sequence without padding; grouped: padded to the longest row, rounded up to a
    multiple of 8; fixed: padded to the task's maximum. `limits` holds that maximum, in tokens, by data set.
    """

    mode: Mode
    pad_id: int
    limits: Mapping[str, int]

    def width(self, dataset: str, longest: int) -> int:
        """The tokens of a padded row."""
        if self.mode == "fixed":
            return self.limits[dataset]
        return rounded_up(longest)

    def collate(self, source: Features, rows: np.ndarray) -> Batch:
        """The batch of some rows of a data set."""
        return collate(source, rows, self.pad_id, width=partial(self.width, source.name), packed=self.mode == "free")

    def computed(self, dataset: str, lengths: np.ndarray, sequences: np.ndarray | None = None) -> int:
        """The tokens that the encoder computes for micro-batches of rows of these lengths, [micro-batches, rows].

        sequences: where rows have several, the tokens of the longest and how many they are, [micro-batches, rows, 2].
        """
        if self.mode == "free":
            return int(lengths.sum())
        if sequences is not None:
            found = zip(sequences[..., 0].max(axis=1), sequences[..., 1].sum(axis=1), strict=True)
            return sum(self.width(dataset, int(longest)) * int(count) for longest, count in found)
        return sum(self.width(dataset, int(longest)) for longest in lengths.max(axis=1)) * lengths.shape[1]


def assemble(
    passes: Passes,
    sources: Mapping[str, Features],
    padding: Padding,
    ranks: Ranks,
    micro: int,
    steps: range,
    draws: Mapping[str, Draw] = MappingProxyType({}),
    joined: bool = False,
) -> Iterator[tuple[list[Pass], list[Batch]]]:
    """For every step what was drawn, and this rank's micro-batches in the order of the draws, on the host.

    draws: by data set what is drawn anew for its rows; none for one that is not named. joined: those of few tokens are read together.
    """
    number = {name: at for at, name in enumerate(sources)}
    most = max(heaviest(source.lengths, micro) for source in sources.values()) if joined else 0
    if ranks.device.type == "cuda":  # a thread begins on GPU 0, where pinning would open a context for every rank
        torch.cuda.set_device(ranks.device)
    for step in steps:
        drawn = passes.draw(step)
        batches, sizes = [], []
        for taken in drawn:
            source, draw = sources[taken.dataset], draws.get(taken.dataset)
            usual = source.rows[taken.rows].mean() * micro or 1.0  # rows of logits in a micro-batch
            if joined:
                sizes += shares(source.lengths[taken.rows], micro, ranks.world_size)
            for rows in micro_batches(taken.rows, micro, ranks.rank, ranks.world_size):
                batch = padding.collate(source, rows)
                batch = replace(batch, share=(len(batch.labels) or usual) / usual)
                if draw is not None:
                    batch = draw(batch, (passes.seed, TRAINED, number[taken.dataset], step), source.lengths[taken.rows])
                batches.append(batch)
        if joined:
            numbers = readings(sizes, most, micro)
            batches = [replace(batch, reading=number) for batch, number in zip(batches, numbers, strict=True)]
        yield drawn, [batch.pinned() for batch in batches] if ranks.device.type == "cuda" else batches


def heaviest(lengths: np.ndarray, rows: int) -> int:
    """The most tokens that so many rows of a data set can have, [rows] lengths."""
    return int(np.resize(np.sort(lengths)[::-1], rows).sum())


def shares(lengths: np.ndarray, micro: int, world_size: int) -> list[tuple[int, int]]:
    """Of each micro-batch of a pass, over all ranks, the most tokens and the longest row; lengths: of the pass's rows."""
    each = lengths.reshape(-1, micro, world_size)
    return list(zip(each.sum(axis=1).max(axis=1).tolist(), each.max(axis=(1, 2)).tolist(), strict=True))


def readings(sizes: Sequence[tuple[int, int]], most: int, micro: int) -> list[int]:
    """The forward pass, by number, that reads each micro-batch of a step: several of few tokens share one, up to `most` tokens.

    The largest first, each into the first pass that has room for it. sizes: of each micro-batch, as `shares` gives them. What leaves
    the encoder is padded again to the longest row of a pass: that, too, has a limit.
    """
    passes: list[tuple[int, int, int]] = []  # micro-batches, tokens, longest row
    found = [0] * len(sizes)
    for at in sorted(range(len(sizes)), key=lambda at: -sizes[at][0]):
        tokens, longest = sizes[at]
        grown = [(count + 1, read + tokens, max(wide, longest)) for count, read, wide in passes]
        fits = (
            n for n, (count, read, wide) in enumerate(grown) if read <= most and count * micro * wide <= PADDED * most
        )
        found[at] = next(fits, len(passes))
        if found[at] == len(passes):
            passes.append((1, tokens, longest))
        else:
            passes[found[at]] = grown[found[at]]
    return found


def read_together(batches: Sequence[Batch]) -> list[list[int]]:
    """The places of a step's micro-batches by the forward pass that reads them."""
    read: dict[Any, list[int]] = {}
    for at, batch in enumerate(batches):
        read.setdefault(("alone", at) if batch.reading is None else batch.reading, []).append(at)
    return list(read.values())


def ahead(items: Iterator[Item], count: int = 2) -> Iterator[Item]:
    """The same items in the same order, up to `count` of them made in a thread before they are asked for."""
    with ThreadPoolExecutor(1, "batches") as thread:  # one thread: the order is that of the calls
        waiting = deque(thread.submit(next, items, END) for _ in range(count))
        while (item := waiting.popleft().result()) is not END:
            waiting.append(thread.submit(next, items, END))
            yield item  # type: ignore[misc]
