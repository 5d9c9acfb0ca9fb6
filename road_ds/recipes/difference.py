"""Whether a difference between two groups of runs on the same rows is more than chance: rows crossed with seeds."""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Difference:
    """The mean difference, its 95 % interval, and the two-sided p of no difference."""

    value: float
    low: float
    high: float
    p: float


def difference(group: np.ndarray, baseline: np.ndarray) -> Difference:
    """The difference group - baseline of two score tables, [seeds, rows], whose columns are the same rows, two or more.

    Other rows and other seeds would both have given other numbers, and each single score has noise of its own. The spread
    of the seeds' means holds the seeds and that noise (by itself it is Welch's test); the spread of the rows' differences
    holds what rows have for one group beyond the other, and that noise once more, which is taken off. A group whose seeds
    show no spread, as a lone one, counts by its rows. Student's t with Satterthwaite's degrees of freedom.

    Source: Hillis 2014, Statistics in Medicine 33:330, readers (here seeds) nested within tests (groups), cases (rows)
    crossed with both; unequal spreads as in Welch's test.
    """
    rows = group.shape[1]
    between_rows = np.var(group.mean(axis=0) - baseline.mean(axis=0), ddof=1) / rows
    parts = []  # variance of the difference, degrees of freedom
    for scores in (group, baseline):
        if spread := between_seeds(scores):
            parts.append((spread, len(scores) - 1))
            between_rows -= noise(scores)
    parts.append((max(0.0, between_rows), rows - 1))
    variance = sum(part for part, _ in parts)
    value = float(group.mean() - baseline.mean())
    rounding = 1e-12 * max(np.abs(group).max(), np.abs(baseline).max())
    if variance <= rounding**2:  # the same on every row
        return Difference(value, value, value, float(abs(value) <= rounding))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    error = variance**0.5
    half = stdtrit(freedom, 0.975) * error
    return Difference(value, float(value - half), float(value + half), float(2 * stdtr(freedom, -abs(value) / error)))


def between_seeds(scores: np.ndarray) -> float:
    """The variance of a group's mean by the spread of its seeds; 0 where their means are alike, or there is one."""
    means = scores.mean(axis=1)
    return 0.0 if np.allclose(means, means[0], rtol=1e-12, atol=0) else float(np.var(means, ddof=1)) / len(means)


def noise(scores: np.ndarray) -> float:
    """The part of a mean's variance that is neither the rows' nor the seeds': what they leave of each single score."""
    seeds, rows = scores.shape
    left = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    return float(np.sum(left**2)) / ((seeds - 1) * (rows - 1) * seeds * rows)
