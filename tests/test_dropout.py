"""Dropout from sixteen bits an element: as torch's in all but the numbers drawn."""

import numpy as np
import pytest
import torch
from runs import tiny_config
from test_export import ARCHITECTURES, fresh, logits
from test_packing import LONGEST, rows
from torch import nn
from torch.utils.checkpoint import checkpoint

from road_ds.config.road import RoadConfig
from road_ds.data.batches import Padding
from road_ds.engine.speed import prepare
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.dropout import Dropout, dropout, replace_dropout
from road_ds.tasks.registry import heads


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9])
def test_each_element_is_dropped_with_the_probability_asked_for(p):
    """Within five standard deviations: over all, in each of the four lanes of a word, and for two neighbours at once."""
    torch.manual_seed(0)
    zero = dropout(torch.ones(2**20), p).eq(0)
    pairs = zero[::2] & zero[1::2]
    for sample, expected in ((zero, p), *((zero[lane::4], p) for lane in range(4)), (pairs, p * p)):
        error = (expected * (1 - expected) / len(sample)) ** 0.5
        assert abs(sample.double().mean().item() - expected) < 5 * error + 2**-17


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 3, 4, 7)])
def test_what_stays_is_scaled_and_so_is_its_gradient(shape, dtype):
    values = torch.randn(shape, dtype=dtype).abs().add(1).requires_grad_()
    found = dropout(values, 0.25)
    found.sum().backward()
    kept = found.ne(0)
    assert found.dtype == dtype and found.shape == values.shape
    assert torch.equal(found, torch.where(kept, values * (4 / 3), 0))
    assert torch.equal(values.grad, torch.where(kept, torch.tensor(4 / 3, dtype=dtype), 0))


def test_torchs_seed_and_state_repeat_the_mask():
    torch.manual_seed(3)
    first, state = dropout(torch.ones(100), 0.5), torch.get_rng_state()
    second = dropout(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropout(torch.ones(100), 0.5), first) and not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(dropout(torch.ones(100), 0.5), second)


def test_activation_checkpointing_draws_the_same_mask_again():
    values = torch.ones(1000, requires_grad=True)
    found = checkpoint(lambda x: Dropout(0.5).train()(x).square(), values, use_reentrant=False)
    found.sum().backward()
    assert torch.equal(values.grad, 2 * found) and 0 < found.eq(0).sum() < 1000


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.3, False)])
def test_nothing_is_drawn_where_nothing_is_dropped(p, training):
    values, state = torch.randn(10), torch.get_rng_state()
    assert torch.equal(Dropout(p).train(training)(values), values)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_ends():
    assert Dropout(1.0).train()(torch.ones(8)).eq(0).all()
    assert dropout(torch.ones(2**10), 1 - 1e-9).isfinite().all()


def test_a_run_on_a_cpu_takes_it_in_its_encoder():
    config = RoadConfig.model_validate(tiny_config(dropout=0.1)["road"])
    model = build_model(config.model, heads(config), load_tokenizer(config.model), dropout=0.1, seed=0)
    before = [name for name, module in model.encoder.named_modules() if type(module) is nn.Dropout]
    prepare(model, config, {"zero_optimization": {"stage": 0}}, "cpu", None, "fp32")
    after = {name: module.p for name, module in model.encoder.named_modules() if type(module) is Dropout}
    assert before and after == dict.fromkeys(before, 0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prepared_model_drops_nothing_in_evaluation(architecture):
    """Heads among it: their shells call the layers that they were built with, whatever stands in the module tree."""
    model, tokenizer = fresh(architecture)
    expected = {head: logits(model, head, tokenizer) for head in model.tasks}
    config = RoadConfig.model_validate(tiny_config()["road"])
    model.train()
    prepare(model, config, {"zero_optimization": {"stage": 0}}, "cpu", None, "fp32")
    model.eval()
    state = torch.get_rng_state()
    for head, values in expected.items():
        np.testing.assert_allclose(logits(model, head, tokenizer), values, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


def test_replaced_modules_change_nothing_in_evaluation_and_drop_in_training():
    config = RoadConfig.model_validate(tiny_config(dropout=0.4)["road"])
    tasks = heads(config)
    model = build_model(config.model, tasks, load_tokenizer(config.model), dropout=0.4, seed=0).eval()
    head = next(name for name, task in tasks.items() if task.rows_per_feature == 1)
    batch = Padding("grouped", 0, {"rows": LONGEST}).collate(rows(tasks[head]), range(4))
    expected = model(batch, head).logits
    assert replace_dropout(model.encoder) > 0
    assert torch.equal(model(batch, head).logits, expected)
    model.train()
    assert not torch.allclose(model(batch, head).logits, expected, atol=1e-3)
