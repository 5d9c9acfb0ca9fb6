"""The benchmark of a masked language model's head: each way is the same loss, and what is said of its logits is right."""

import pytest
import torch
from test_bench import load as load


@pytest.fixture
def bench(load, monkeypatch):
    for name in ("measure", "length_mix", "presets", "providers", "apart"):
        load(name)
    bench = load("bench_mlm_head")
    monkeypatch.setattr(bench, "ENTRIES", 300)
    return bench


def test_every_way_is_the_same_loss(bench):
    found, gradients = [], []
    for way, loss in bench.WAYS.items():
        torch.manual_seed(0)
        head = bench.Head(way, rows=2)
        found.append(loss(head))
        found[-1].backward()
        gradients.append((head.states.grad, head.layer.weight.grad, head.layer.bias.grad))
    for total, own in zip(found, gradients, strict=True):
        torch.testing.assert_close(total, found[0])
        torch.testing.assert_close(own, gradients[0], rtol=1e-4, atol=1e-4)


def test_what_is_measured(bench):
    said = {way: bench.Head(way, rows=2).measure() for way in bench.WAYS}
    assert said["all tokens"]["logits MB"] == pytest.approx(2 * 128 * 300 * 4e-6)
    assert said["masked tokens"]["logits MB"] == pytest.approx(2 * 19 * 300 * 4e-6)
    assert all(one["memory MB"] >= 0 and one["seconds"] > 0 for one in said.values())
