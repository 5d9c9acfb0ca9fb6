"""Free, grouped and fixed padding are three ways to compute one thing: losses, gradients, and nothing of a neighbour."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_export import ARCHITECTURES, TASKS, fresh

from road_ds.batches import Padding
from road_ds.evaluation import MemorySet
from road_ds.features import Feature
from road_ds.objectives import supervised
from road_ds.packing import ATTENTION, Packing

PACKED = ["electra", "bert", "roberta", "albert", "modernbert"]
LONGEST = 64


def rows(task, seed: int = 0) -> MemorySet:
    """A row of every length from 1 to the longest, in no order, labelled at random."""
    generator = np.random.default_rng(seed)
    features = []
    for number, length in enumerate(generator.permutation(np.arange(1, LONGEST + 1))):
        labels = {
            "span_qa": generator.integers(0, length, 2),
            "classification": generator.integers(0, 3, 1),
            "regression": generator.normal(size=1),
        }[task.type]
        ids = generator.integers(5, 900, length)
        features.append(Feature(ids, (np.arange(length) > length // 2).astype(np.int64), labels, number))
    return MemorySet("rows", features)


def loss_and_gradients(model, head, source, mode, micro=16):
    """The mean loss over all rows in micro-batches, and the gradient of every parameter."""
    padding = Padding(mode, pad_id=0, limits={"rows": LONGEST})
    model.zero_grad()
    total = 0.0
    for first in range(0, len(source), micro):
        batch = padding.collate(source, np.arange(first, first + micro))
        outputs = model(batch, head)
        loss = supervised(outputs.logits, batch.labels, outputs.lengths).total * micro / len(source)
        loss.backward()
        total += loss.item()
    return total, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def without_dropout(architecture):
    model, _ = fresh(architecture)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):  # ModernBERT has a number there
            module.attention_dropout = 0.0
    return model.train()


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("architecture", PACKED)
def test_the_three_paddings_give_one_loss_and_gradient(architecture, head):
    model, source = without_dropout(architecture), rows(TASKS[head])
    expected, gradients = loss_and_gradients(model, head, source, "fixed")  # through transformers' own attention
    assert model.encoder.config._attn_implementation == "sdpa"
    assert model.use_packing() == "" and model.training
    assert model.encoder.config._attn_implementation == ATTENTION
    for mode in ("free", "grouped", "fixed"):
        found, others = loss_and_gradients(model, head, source, mode)
        assert found == pytest.approx(expected, abs=1e-5)
        for name, gradient in gradients.items():
            assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-5), f"{mode}: {name}"


@pytest.mark.parametrize("architecture", ["deberta-v2"])
def test_what_cannot_run_packed_says_so_and_stays_as_it_was(architecture):
    model, source = without_dropout(architecture), rows(TASKS["nli"])
    assert architecture in model.use_packing()
    expected, _ = loss_and_gradients(model, "nli", source, "fixed")
    assert loss_and_gradients(model, "nli", source, "grouped")[0] == pytest.approx(expected, abs=1e-5)


def test_a_row_sees_nothing_of_its_neighbours():
    """Not even through the order of rows: a changed token changes the logits of its own row only."""
    model, source = without_dropout("modernbert").eval(), rows(TASKS["nli"])
    model.use_packing()
    padding = Padding("free", 0, {"rows": LONGEST})
    batch = padding.collate(source, np.arange(8))
    changed = batch.input_ids.clone()
    changed[3, 0] = 7 if changed[3, 0] != 7 else 8
    with torch.no_grad():
        before, after = (model(replace(batch, input_ids=ids), "nli").logits for ids in (batch.input_ids, changed))
    differs = (before != after).any(dim=1)
    assert differs[3] and differs.sum() == 1


def test_a_packing_knows_where_the_rows_lie():
    packing = Packing.of(np.array([2, 2, 3]), width=4)
    assert packing.index.tolist() == [0, 1, 4, 5, 8, 9, 10]
    assert packing.positions.tolist() == [[0, 1, 0, 1, 0, 1, 2]]
    assert packing.bounds.tolist() == [0, 2, 4, 7] and packing.bounds.dtype == torch.int32
    assert packing.runs == ((2, 2), (1, 3)) and packing.longest == 3
    ids = torch.tensor([[1, 2, 0, 0], [3, 4, 0, 0], [5, 6, 7, 0]])
    assert packing.pack(ids).tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert torch.equal(packing.unpack(packing.pack(ids)[..., None].float())[..., 0], ids.float())


def test_long_rows_of_one_length_are_attended_to_in_turns():
    assert Packing.of(np.array([384] * 3), 384).runs == ((1, 384), (1, 384), (1, 384))
    assert Packing.of(np.array([8] * 30), 8).runs == ((30, 8),)
    assert sum(rows for rows, _ in Packing.of(np.full(50, 100), 104).runs) == 50
