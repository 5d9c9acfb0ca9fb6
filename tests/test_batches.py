"""Micro-batches: their width by padding, what is computed of them, and their assembly in a thread, in order."""

import threading
import time

import numpy as np
import pytest
import torch

from road_ds.common.ranks import Ranks
from road_ds.data.batch import Feature
from road_ds.data.batches import Padding, ahead, assemble
from road_ds.data.passes import Passes, micro_batches
from road_ds.tasks.evaluation import MemorySet


def source(name: str, *lengths: int) -> MemorySet:
    return MemorySet(name, [Feature(list(range(5, 5 + n)), [0] * n, [0], i) for i, n in enumerate(lengths)])


def padding(mode: str) -> Padding:
    return Padding(mode, pad_id=0, limits={"rows": 100})


@pytest.mark.parametrize(("mode", "width"), [("free", 56), ("grouped", 56), ("fixed", 100)])
def test_a_batch_is_as_wide_as_its_padding_says(mode, width):
    batch = padding(mode).collate(source("rows", 9, 50, 3), np.array([0, 1, 2]))
    assert batch.input_ids.shape == (3, width) and batch.attention_mask.sum().item() == 62
    assert (batch.packing is not None) == (mode == "free")
    computed = padding(mode).computed("rows", np.array([[9, 50, 3]]))
    assert computed == (62 if mode == "free" else 3 * width)


def test_a_batch_without_padding_is_known_to_the_host():
    assert padding("grouped").collate(source("rows", 8, 8), np.array([0, 1])).full
    assert not padding("grouped").collate(source("rows", 8, 7), np.array([0, 1])).full


def test_what_is_computed_counts_every_rank_and_micro_batch():
    """The same from the plan alone as from the batches that the ranks assemble."""
    rows = source("rows", *np.random.default_rng(0).integers(3, 90, 64).tolist())
    passes = Passes({"rows": rows.lengths}, np.ones(1), passes=2, rows=16, seed=0, window=32)
    for mode in ("free", "grouped", "fixed"):
        batches = []
        for rank in range(2):
            ranks = Ranks(rank=rank, world_size=2, local_rank=rank, device=torch.device("cpu"), control=None)
            for _, some in assemble(passes, {"rows": rows}, padding(mode), ranks, 4, range(3)):
                batches += some
        seen = sum(b.lengths.sum().item() if mode == "free" else b.input_ids.numel() for b in batches)
        pieces = [
            rows.lengths[piece]
            for step in range(3)
            for taken in passes.draw(step)
            for rank in range(2)
            for piece in micro_batches(taken.rows, 4, rank, 2)
        ]
        assert len(batches) == len(pieces) == 24
        assert padding(mode).computed("rows", np.array(pieces)) == seen


def test_padding_does_not_change_the_plan():
    rows = source("rows", *range(3, 67))
    passes = Passes({"rows": rows.lengths}, np.ones(1), passes=2, rows=16, seed=0, window=32)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), control=None)
    drawn = [
        [batch.features.tolist() for _, some in assemble(passes, {"rows": rows}, padding(mode), ranks, 8, range(4)) for batch in some]
        for mode in ("free", "grouped", "fixed")
    ]  # fmt: skip
    assert drawn[0] == drawn[1] == drawn[2]


def test_items_come_in_order_from_one_other_thread():
    threads = set()

    def items():
        for number in range(50):
            threads.add(threading.get_ident())
            time.sleep(0.0005 * (number % 3))
            yield number

    assert list(ahead(items())) == list(range(50))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_no_more_is_made_than_asked_for():
    made = []
    items = ahead((made.append(number) or number for number in range(100)), count=2)
    assert next(items) == 0
    time.sleep(0.1)
    assert len(made) == 3, "the first, and two ahead of it"
    items.close()
    assert len(made) == 3
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_a_fault_in_the_thread_is_raised_where_the_item_is_needed():
    def items():
        yield 1
        raise ValueError("row 7 is broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="row 7 is broken"):
        next(found)
