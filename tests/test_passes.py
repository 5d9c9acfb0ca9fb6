"""The data plan: a pure function of (seed, step), the same rows on any hardware."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from road_ds.config.road import Power, RoadConfig, Weights
from road_ds.data.passes import BLOCK, Passes, draw_weights, micro_batches


def plan(sizes=(50, 130, 17), passes=4, rows=8, seed=3, window=64, weights=None) -> Passes:
    generator = np.random.default_rng(0)
    lengths = {f"set{i}": generator.integers(5, 100, size) for i, size in enumerate(sizes)}
    weights = np.full(len(sizes), 1 / len(sizes)) if weights is None else np.array(weights)
    return Passes(lengths, weights, passes=passes, rows=rows, seed=seed, window=window)


def drawn(passes: Passes, step: int) -> list[tuple[str, list[int]]]:
    return [(taken.dataset, taken.rows.tolist()) for taken in passes.draw(step)]


@pytest.mark.parametrize("window", [0, 64])
def test_a_step_is_the_same_asked_alone_or_in_order(window):
    whole = plan(window=window)
    in_order = [drawn(whole, step) for step in range(40)]
    for step in (39, 0, 17):
        assert drawn(plan(window=window), step) == in_order[step]


def test_steps_far_into_a_run_need_no_history():
    step = 3 * BLOCK + 5
    walked = plan()
    for before in range(step):
        walked.draw(before)
    assert drawn(plan(), step) == drawn(walked, step)


def test_another_seed_draws_other_rows():
    assert [drawn(plan(seed=1), s) for s in range(5)] != [drawn(plan(seed=2), s) for s in range(5)]


@pytest.mark.parametrize("window", [0, 40, 1000])
def test_every_epoch_holds_every_row_once(window):
    passes = plan(window=window)
    taken = {name: [] for name in passes.names}
    for step in range(120):
        for name, rows in drawn(passes, step):
            taken[name] += rows
    for name, lengths in zip(passes.names, passes.lengths, strict=True):
        size, stream = len(lengths), taken[name]
        assert len(stream) > 2 * size
        counts = np.bincount(stream, minlength=size)
        # the last epoch is cut off, and a draw that spans two epochs is sorted: whole epochs differ by one at most
        assert counts.max() - counts.min() <= 1 + (len(stream) % size > 0)


def test_a_stream_goes_on_over_blocks_of_draws():
    passes = plan(sizes=(3 * BLOCK,), passes=1, rows=1, weights=[1.0])
    assert sorted(drawn(passes, step)[0][1][0] for step in range(3 * BLOCK)) == list(range(3 * BLOCK))


@pytest.mark.parametrize("window", [0, 40])
def test_every_epoch_has_its_own_order(window):
    passes = plan(sizes=(80,), passes=1, rows=8, window=window, weights=[1.0])
    epochs = [[drawn(passes, 10 * epoch + step)[0][1] for step in range(10)] for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]


def test_draws_follow_the_weights_and_are_counted():
    passes = plan(weights=[0.7, 0.2, 0.1])
    counts = dict.fromkeys(passes.names, 0)
    for step in range(1500):
        for name, _ in drawn(passes, step):
            counts[name] += 1
    assert passes.draws_until(1500) == counts
    assert [counts[name] / 6000 for name in passes.names] == pytest.approx([0.7, 0.2, 0.1], abs=0.02)


def test_length_grouping_leaves_little_padding():
    def padding(window, first=0):
        passes = plan(sizes=(2001,), rows=16, window=window, weights=[1.0])
        real = computed = 0
        for step in range(first, first + 60):
            for taken in passes.draw(step):
                lengths = passes.lengths[0][taken.rows]
                real, computed = real + lengths.sum(), computed + lengths.max() * len(lengths)
        return 1 - real / computed

    assert padding(0) > 0.3
    assert padding(1024) < 0.1
    assert padding(1024, first=500) < 0.1, "draws stay on the cuts in later epochs, whatever is left over"


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.integers(1, 4), micro=st.integers(1, 8), world=st.integers(1, 6), seed=st.integers(0, 5), step=st.integers(0, 50)
)  # fmt: skip
def test_ranks_and_micro_batches_cover_a_pass_once(pieces, micro, world, seed, step):
    passes = plan(rows=pieces * micro * world, seed=seed)
    for taken in passes.draw(step):
        parts = [part for rank in range(world) for part in micro_batches(taken.rows, micro, rank, world)]
        assert all(len(part) == micro for part in parts) and len(parts) == pieces * world
        assert sorted(np.concatenate(parts)) == sorted(taken.rows)


@pytest.mark.parametrize(("micro", "world"), [(2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (2, 4), (1, 8)])
def test_hardware_does_not_change_the_rows_of_a_step(micro, world):
    for step in range(20):
        for taken in plan(rows=8).draw(step):
            parts = np.concatenate([p for r in range(world) for p in micro_batches(taken.rows, micro, r, world)])
            assert sorted(parts) == sorted(taken.rows)


def test_sampling_weights():
    config = {
        "model": {"name": "m"},
        "tasks": {"t": {}},
        "datasets": {"a": {"task": "t"}, "b": {"task": "t"}},
        "steps": 1,
    }
    sizes = {"a": 100, "b": 400}

    def weights(sampling):
        return draw_weights(RoadConfig.model_validate({**config, "sampling": sampling}).sampling, sizes).tolist()

    assert weights("uniform") == [0.5, 0.5]
    assert weights("proportional") == [0.2, 0.8]
    assert weights(Power(power=0.5)) == pytest.approx([1 / 3, 2 / 3])
    assert weights(Weights(weights={"a": 3, "b": 1})) == [0.75, 0.25]
