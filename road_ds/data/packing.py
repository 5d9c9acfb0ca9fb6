"""Packed rows: where the rows of a padded batch lie when they follow each other in one sequence."""

from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

SCORES = 2**17  # attention scores per head that one call on a CPU computes: what stays in its cache


@dataclass(frozen=True)
class Packing:
    """Where the rows of a padded batch lie in the packed sequence.

    The numbers that shapes depend on are known to the host: using them never waits for the device.
    """

    index: torch.Tensor  # [tokens] the place of each packed token in the flattened padded batch
    positions: torch.Tensor  # [1, tokens] its place in its row, from 0
    bounds: torch.Tensor  # [rows + 1] int32, where each row begins and the last one ends
    shape: tuple[int, int]  # rows, width of the padded batch
    longest: int
    runs: tuple[tuple[int, int], ...]  # (rows, length) of neighbours that have the same length

    @classmethod
    def of(cls, lengths: np.ndarray, width: int) -> "Packing":
        """The packing of rows of these lengths that are padded to `width`."""
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        index = positions + np.repeat(np.arange(len(lengths)) * width, lengths)
        runs: list[tuple[int, int]] = []
        for length, same in groupby(lengths.tolist()):
            rows, most = len(list(same)), max(1, SCORES // length**2)
            runs += [(min(most, rows - first), length) for first in range(0, rows, most)]
        return cls(
            index=torch.from_numpy(index),
            positions=torch.from_numpy(positions)[None],
            bounds=torch.from_numpy(bounds.astype(np.int32)),
            shape=(len(lengths), width),
            longest=int(lengths.max()),
            runs=tuple(runs),
        )

    def joined(self, other: "Packing") -> "Packing":
        """The packing of these rows and, behind them, those of another, padded to the wider one's width."""
        rows, width = self.shape[0], max(self.shape[1], other.shape[1])
        return Packing(
            index=torch.cat([self._index_in(width), other._index_in(width) + rows * width]),
            positions=torch.cat([self.positions, other.positions], dim=1),
            bounds=torch.cat([self.bounds, self.bounds[-1] + other.bounds[1:]]),
            shape=(rows + other.shape[0], width),
            longest=max(self.longest, other.longest),
            runs=self.runs + other.runs,
        )

    def _index_in(self, width: int) -> torch.Tensor:
        """The places of the packed tokens, with rows padded to a larger width."""
        own = self.shape[1]
        return self.index if own == width else self.index + self.index // own * (width - own)

    @property
    def sizes(self) -> list[int]:
        """Tokens in each run."""
        return [rows * length for rows, length in self.runs]

    def map(self, change: Any) -> "Packing":
        """The same packing with every tensor changed, for example moved."""
        tensors: dict[str, Any] = {f.name: v for f in fields(self) if torch.is_tensor(v := getattr(self, f.name))}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[rows, width, ...] -> [1, tokens, ...]."""
        return padded.flatten(0, 1).index_select(0, self.index)[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, tokens, hidden] -> [rows, width, hidden], zero where there is no token."""
        rows, width = self.shape
        padded = packed.new_zeros(rows * width, packed.shape[-1])
        return padded.index_copy(0, self.index, packed[0]).view(rows, width, -1)
