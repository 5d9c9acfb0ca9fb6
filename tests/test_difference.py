"""How sure a difference is: against the tests that it becomes at its ends, and how often chance alone is called an effect."""

import numpy as np
import pytest
from scipy import stats

from road_ds.recipes.difference import difference

ROWS = 100


def experiments(
    seeds: tuple[int, int] = (3, 3),
    seed: tuple[float, float] = (0.0, 0.0),
    row: float = 0.0,
    noise: float = 1.0,
    effect: float = 0.0,
    shares: bool = False,
    times: int = 1500,
):
    """Pairs of tables [seeds, ROWS]: two methods, the same rows, whose true difference is `effect`.

    Standard deviations: seed: of each method's seeds; row: of what a row has for one method beyond the other; noise: of a
    single score. shares: right and wrong, 1 and 0, instead of numbers.
    """
    random = np.random.default_rng(7)
    rows = random.normal(0, 1, (times, 1, ROWS))  # how hard a row is for both
    tables = []
    for number, spread, gain in zip(seeds, seed, (effect, 0.0), strict=True):
        scores = rows + gain + random.normal(0, row, rows.shape) + random.normal(0, noise, (times, number, ROWS))
        scores += random.normal(0, spread, (times, number, 1))
        tables.append((scores > 0).astype(float) if shares else scores)
    return zip(*tables, strict=True)


def called(**settings) -> float:
    """The share of experiments in which a difference is called one."""
    found = [difference(group, baseline) for group, baseline in experiments(**settings)]
    assert all((d.p < 0.05) == (not d.low <= 0 <= d.high) for d in found)  # interval and p say the same
    return float(np.mean([d.p < 0.05 for d in found]))


WORLDS = {
    "noise of single scores alone": {},
    "seeds alone": {"seed": (0.3, 0.3), "noise": 0.3},
    "seeds as large as the noise": {"seed": (0.07, 0.07)},
    "rows alone": {"row": 1.0, "noise": 0.3},
    "rows and noise": {"row": 1.0},
    "rows and seeds": {"row": 1.0, "seed": (0.1, 0.1), "noise": 0.5},
    "one method's seeds alone": {"seed": (0.3, 0.03), "noise": 0.5},
    "shares": {"shares": True},
    "shares, rows and seeds": {"shares": True, "seed": (0.1, 0.1), "row": 1.0},
}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_chance_is_called_an_effect_about_once_in_twenty(world, seeds):
    assert 0.03 <= called(seeds=(seeds, seeds), **WORLDS[world]) <= 0.07


@pytest.mark.parametrize(
    ("seeds", "world"),
    [
        ((1, 1), "rows and noise"),
        ((1, 1), "shares"),
        ((1, 5), "shares"),
        ((3, 5), "shares"),
        ((3, 5), "rows and seeds"),
    ],
)
def test_so_it_is_with_other_numbers_of_runs(world, seeds):
    """One run says nothing of its seeds: here they have no part."""
    assert 0.03 <= called(seeds=seeds, **WORLDS[world]) <= 0.07


@pytest.mark.parametrize(("seeds", "power"), [(3, 0.29), (5, 0.60)])
def test_an_effect_of_two_standard_errors_is_found(seeds, power):
    """The effect is 2.05 standard errors with three seeds, 2.65 with five, where noise of single scores is all there is."""
    effect = 2.05 * (2 / (3 * ROWS)) ** 0.5
    assert called(seeds=(seeds, seeds), effect=effect) == pytest.approx(power, abs=0.04)


def test_one_run_each_is_the_paired_t_test_over_rows():
    group, baseline = np.random.default_rng(0).random((2, 1, 40))
    known = stats.ttest_rel(group[0], baseline[0])
    found, interval = difference(group, baseline), known.confidence_interval()
    assert found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_rows_that_all_say_the_same_leave_welchs_test_over_seeds():
    ours, theirs = np.array([71.0, 73.0, 72.5]), np.array([70.0, 70.5, 71.5, 69.0])
    known = stats.ttest_ind(ours, theirs, equal_var=False)
    found = difference(np.tile(ours[:, None], 50), np.tile(theirs[:, None], 50))
    assert found.value == pytest.approx(ours.mean() - theirs.mean()) and found.p == pytest.approx(known.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(known.confidence_interval()))


def test_the_parts_by_hand():
    """Two seeds against one, three rows."""
    group, baseline = np.array([[1.0, 5.0, 0.0], [2.0, 3.0, -0.5]]), np.array([[0.0, 0.0, 0.0]])
    means = group.mean(axis=1)
    assert means == pytest.approx([2.0, 1.5])
    seeds = np.var(means, ddof=1) / 2
    table = group - group.mean(axis=0) - means[:, None] + group.mean()
    rows = np.var([1.5, 4.0, -0.25], ddof=1) / 3 - np.sum(table**2) / 2 / (2 * 3)
    freedom = (seeds + rows) ** 2 / (seeds**2 / 1 + rows**2 / 2)
    found = difference(group, baseline)
    assert found.p == pytest.approx(2 * stats.t.sf(1.75 / np.sqrt(seeds + rows), freedom))
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, freedom) * np.sqrt(seeds + rows))


def test_rows_are_paired():
    """Nearly the same small gain on every row is sure, however much the rows differ among themselves."""
    random = np.random.default_rng(0)
    baseline = random.normal(50, 30, (1, 200))
    found = difference(baseline + random.normal(0.5, 0.1, (1, 200)), baseline)
    assert 0.47 < found.low < 0.5 < found.high < 0.53 and found.p < 0.001


def test_seeds_count():
    """A gain that hangs on one lucky seed is not sure; the same gain of all seeds is."""
    random = np.random.default_rng(4)
    rows = random.normal(0, 1, (6, 500))
    lucky = difference(rows[:3] + np.array([[6], [0], [0]]), rows[3:])
    steady = difference(rows[:3] + 2, rows[3:])
    assert lucky.value == pytest.approx(steady.value)
    assert lucky.low < 0 and lucky.p > 0.3 and steady.low > 1.7 and steady.p < 0.001


def test_seeds_that_agree_by_chance_leave_the_rows():
    """Three runs with the same number of right rows, each time others: no sign of sure knowledge."""
    shares = np.array([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])
    found = difference(shares, np.roll(shares, 1, axis=1) * [[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    assert 0.05 < found.p < 1 and found.low < 0 < found.high


def test_nothing_differs_and_everything_does():
    rows = np.random.default_rng(1).random((3, 9))
    assert difference(np.ones((1, 9)), np.ones((1, 9))).p == difference(rows, rows).p == 1
    sure = difference(np.ones((2, 9)), np.zeros((2, 9)))
    assert (sure.low, sure.high, sure.p) == (1, 1, 0)


def test_the_unit_does_not_matter():
    """Squared errors of small labels are small numbers, and their seeds count all the same."""
    random = np.random.default_rng(2)
    one, two = random.random((3, 60)), random.random((3, 60)) + random.random((3, 1))
    large, small = difference(one, two), difference(1e-9 * one, 1e-9 * two)
    assert small.p == pytest.approx(large.p) and small.low == pytest.approx(1e-9 * large.low)


def test_runs_that_are_the_same_do_not_differ_by_rounding():
    rows = np.random.default_rng(3).random((1, 60)) / 3
    assert difference(np.repeat(rows, 3, axis=0), rows).p == difference(np.repeat(rows, 7, axis=0), rows).p == 1


def test_the_other_way_round():
    random = np.random.default_rng(1)
    one, two = random.random((3, 60)), random.random((2, 60))
    there, back = difference(one, two), difference(two, one)
    assert there.value == pytest.approx(-back.value) and there.p == pytest.approx(back.p)
    assert there.low == pytest.approx(-back.high) and there.high == pytest.approx(-back.low)
