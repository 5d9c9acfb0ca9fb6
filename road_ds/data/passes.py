"""Which rows are trained on which pass of which step: a pure function of (seed, step), the same on every rank."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from road_ds.config.road import PlanSettings, Power, Sampling, Weights

BLOCK = 1024  # steps whose draws come from one generator


@dataclass(frozen=True)
class Pass:
    """One draw of Algorithm 1: a data set and the rows taken from it, shortest first."""

    dataset: str
    rows: np.ndarray  # [rows per pass]


def draw_weights(sampling: Sampling, sizes: Mapping[str, int]) -> np.ndarray:
    """Each data set's probability in a draw, in the order of `sizes`. Uniform is Algorithm 1's random(datasets)."""
    counts = np.array([sizes[name] for name in sizes], dtype=np.float64)
    if isinstance(sampling, Weights):
        weights = np.array([sampling.weights[name] for name in sizes], dtype=np.float64)
    elif isinstance(sampling, Power):
        weights = counts**sampling.power
    else:
        weights = {"uniform": np.ones_like(counts), "proportional": counts}[sampling]
    return weights / weights.sum()


class Passes:
    """The data plan of a run (ROaD, Algorithm 1).

    lengths: per data set the length of each row in tokens, [rows]; weights: the probability of each data set in a
    draw; rows: rows per pass over all ranks; window: rows that are sorted together by length, 0 for plain shuffling.

    Each data set is an endless stream of epochs; every draw takes its next `rows` rows. Nothing but the step number
    is state, so a resumed run continues exactly and other hardware sees the same rows.
    """

    def __init__(
        self, lengths: Mapping[str, np.ndarray], weights: np.ndarray, *, passes: int, rows: int, seed: int, window: int
    ):
        self.names = list(lengths)
        self.lengths = [np.asarray(lengths[name]) for name in self.names]
        self.weights, self.passes, self.rows, self.seed, self.window = weights, passes, rows, seed, window
        self._draws = lru_cache(maxsize=4)(self._draw_block)
        self._epoch = lru_cache(maxsize=2 * len(self.names))(self._make_epoch)
        self._before = [np.zeros(len(self.names), dtype=np.int64)]  # draws per data set before each block

    def draw(self, step: int) -> list[Pass]:
        """The passes of a step (counted from 0), in order; every row of a pass belongs to one data set."""
        block, offset = divmod(step, BLOCK)
        draws = self._draws(block)
        taken = self._drawn_before(block) + np.bincount(draws[:offset].ravel(), minlength=len(self.names))
        result = []
        for index in draws[offset]:
            result.append(Pass(self.names[index], self._take(int(index), int(taken[index]) * self.rows)))
            taken[index] += 1
        return result

    def draws_until(self, steps: int) -> dict[str, int]:
        """How many draws each data set gets in the first `steps` steps."""
        block, offset = divmod(steps, BLOCK)
        counts = self._drawn_before(block).copy()
        if offset:
            counts = counts + np.bincount(self._draws(block)[:offset].ravel(), minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def _draw_block(self, block: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, 0, block])
        return generator.choice(len(self.names), size=(BLOCK, self.passes), p=self.weights)

    def _drawn_before(self, block: int) -> np.ndarray:
        while len(self._before) <= block:
            draws = self._draw_block(len(self._before) - 1)
            self._before.append(self._before[-1] + np.bincount(draws.ravel(), minlength=len(self.names)))
        return self._before[block]

    def _take(self, index: int, start: int) -> np.ndarray:
        """Rows [start, start + rows) of a data set's stream, shortest first."""
        lengths = self.lengths[index]
        parts, position = [], start
        while position < start + self.rows:
            epoch, offset = divmod(position, len(lengths))
            part = self._epoch(index, epoch)[offset : offset + start + self.rows - position]
            parts.append(part)
            position += len(part)
        rows = np.concatenate(parts)
        return rows[np.argsort(lengths[rows], kind="stable")]

    def _make_epoch(self, index: int, epoch: int) -> np.ndarray:
        """One permutation of a data set: shuffle, sort inside windows, cut into passes, shuffle the cuts."""
        lengths = self.lengths[index]
        generator = np.random.default_rng([self.seed, 1, index, epoch])
        order = generator.permutation(len(lengths))
        if self.window == 0:
            return order
        # The last draw of the epoch before may reach into this one: those rows are no cut of this epoch.
        lead = min(-epoch * len(order) % self.rows, len(order))
        whole = (len(order) - lead) // self.rows * self.rows
        head, body, tail = np.split(order, [lead, lead + whole])
        window = max(1, self.window // self.rows) * self.rows
        for first in range(0, whole, window):
            part = body[first : first + window]
            body[first : first + window] = part[np.argsort(lengths[part], kind="stable")]
        cuts = body.reshape(-1, self.rows)
        return np.concatenate([head, cuts[generator.permutation(len(cuts))].ravel(), tail])


def micro_batches(rows: np.ndarray, micro: int, rank: int, world_size: int) -> list[np.ndarray]:
    """A rank's share of a pass, piece by piece: [micro] rows each.

    Rows come sorted by length; a piece is a run of neighbours dealt out over the ranks, so that the ranks' pieces are
    equally long and little is padding.
    """
    return [piece[rank::world_size] for piece in rows.reshape(-1, micro * world_size)]


def plan(settings: PlanSettings, batch_size: int, lengths: Mapping[str, np.ndarray]) -> tuple[Passes, int]:
    """The data plan of a run, and its number of steps; batch_size: rows a step; lengths: tokens of each row by data set."""
    lengths = {name: np.asarray(values) for name, values in lengths.items()}
    sizes = {name: len(values) for name, values in lengths.items()}
    passes = Passes(
        lengths, draw_weights(settings.sampling, sizes),
        passes=settings.passes, rows=batch_size // settings.passes, seed=settings.seed, window=settings.length_window,
    )  # fmt: skip
    return passes, settings.steps or max(1, round((settings.epochs or 1) * sum(sizes.values()) / batch_size))
