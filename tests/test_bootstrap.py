"""The paired bootstrap against all resamples counted one by one, and on differences that are known."""

import itertools

import numpy as np
import pytest

from road_ds.recipes.bootstrap import paired


def every_resample(group: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """The difference of each possible draw of rows and, per group, of seeds, all equally likely."""

    def draws(n):
        return [list(draw) for draw in itertools.product(range(n), repeat=n)]

    return np.array([
        group[ours][:, rows].mean() - baseline[theirs][:, rows].mean()
        for rows in draws(group.shape[1])
        for ours in draws(len(group))
        for theirs in draws(len(baseline))
    ])  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs"), [(1, 1), (2, 1), (2, 3)])
def test_it_agrees_with_every_resample_counted(ours, theirs):
    random = np.random.default_rng(ours * 10 + theirs)
    group, baseline = random.random((ours, 4)) + 0.1, random.random((theirs, 4))
    exact = every_resample(group, baseline)
    found = paired(group, baseline, replicates=40_000)
    assert found.value == pytest.approx(group.mean() - baseline.mean())
    for end, share in ((found.low, 0.025), (found.high, 0.975)):  # several resamples may give the very same number
        assert np.mean(exact < end - 1e-9) <= share + 0.006 and np.mean(exact <= end + 1e-9) >= share - 0.006
    assert found.p == pytest.approx(2 * min(np.mean(exact <= 0), np.mean(exact >= 0)), abs=0.012)


def test_rows_are_paired():
    """The same small gain on every row is certain, however much the rows differ among themselves."""
    baseline = np.random.default_rng(0).normal(50, 30, (1, 200))
    found = paired(baseline + 0.5, baseline)
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5)) and found.p < 0.001


def test_seeds_count():
    """A gain that hangs on one lucky seed is not certain; the same gain of all seeds is."""
    rows = np.zeros((1, 500))
    lucky = paired(np.vstack([rows + 6, rows, rows]), np.vstack([rows] * 3))
    steady = paired(np.vstack([rows + 2] * 3), np.vstack([rows] * 3))
    assert lucky.value == steady.value == 2
    assert lucky.low == 0 and lucky.p > 0.3 and steady.low == 2 and steady.p < 0.001


def test_no_difference_and_the_other_way_round():
    random = np.random.default_rng(1)
    one, two = (random.random((3, 60)) < 0.7).astype(float), (random.random((2, 60)) < 0.6).astype(float)
    assert paired(one, one[[0, 1, 2]]).value == 0
    assert paired(rows := np.ones((1, 9)), rows).p == 1
    there, back = paired(one, two), paired(two, one)
    assert there.value == pytest.approx(-back.value) and there.p == pytest.approx(back.p, abs=0.03)
    assert there.low == pytest.approx(-back.high, abs=0.02)


def test_it_covers_what_it_should():
    """Of 300 experiments without a true difference about one in twenty is called one; rows are the only chance here."""
    random = np.random.default_rng(2)
    called = 0
    for _ in range(300):
        one, two = random.normal(0, 1, (2, 1, 80))
        called += paired(one, two, replicates=400).p < 0.05
    assert 5 <= called <= 27


def test_the_seed_decides():
    random = np.random.default_rng(3)
    one, two = random.random((2, 2, 30))
    assert paired(one, two, seed=1) == paired(one, two, seed=1) != paired(one, two, seed=2)
