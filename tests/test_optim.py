"""Layer-wise learning rates and the schedule over them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from road_ds.optim import depth, parameter_groups, rate_at, scheduler, warmup_steps

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "pad_token_id": 0,
}


class Both(torch.nn.Module):
    def __init__(self, architecture: str):
        super().__init__()
        whole = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **SMALL))
        self.encoder = whole.base_model
        self.heads = torch.nn.ModuleDict({"nli": torch.nn.ModuleDict({"classifier": whole.classifier})})


@pytest.mark.parametrize("architecture", ["electra", "bert", "roberta", "deberta-v2", "modernbert"])
def test_each_layer_has_its_rate(architecture):
    model = Both(architecture)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_lr_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    rates = {name: rate[id(p)] for name, p in model.named_parameters()}
    layers = "encoder.layers" if architecture == "modernbert" else "encoder.encoder.layer"
    for layer, expected in ((2, 0.5), (1, 0.25), (0, 0.125)):
        found = {r for name, r in rates.items() if name.startswith(f"{layers}.{layer}.")}
        assert found == {expected}
    assert {r for name, r in rates.items() if name.startswith("encoder.embeddings")} == {0.0625}
    assert {r for name, r in rates.items() if name.startswith("heads")} == {1.0}
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())


def test_albert_shares_its_layers():
    assert depth("encoder.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight", 1) == 1
    assert depth("encoder.embeddings.word_embeddings.weight", 1) == 2
    assert depth("encoder.encoder.embedding_hidden_mapping_in.weight", 1) == 2
    assert depth("encoder.pooler.weight", 1) == 1


def test_no_decay_on_biases_and_norms():
    model = Both("electra")
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_lr_decay=1.0)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1], "one rate: two groups"
    for group in groups:
        assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


def test_schedules():
    assert [rate_at(step, 10, 4, "linear") for step in range(10)] == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    )
    assert [rate_at(step, 4, 0, "constant") for step in range(4)] == [1.0] * 4
    assert [rate_at(step, 4, 0, "cosine") for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    assert rate_at(0, 10, 4, "linear") > 0, "the first update moves"
    assert (warmup_steps(0.1, 500), warmup_steps(20, 500), warmup_steps(0, 500)) == (50, 20, 0)


def test_the_schedule_keeps_the_ratios():
    model = Both("electra")
    groups = parameter_groups(model, lr=1.0, weight_decay=0.0, layer_lr_decay=0.5)
    optimizer = torch.optim.SGD(groups)
    schedule = scheduler(10, 0.2, "linear")(optimizer)
    for step in range(10):
        rates = sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)
        assert rates == pytest.approx([rate_at(step, 10, 2, "linear") * 0.5**k for k in range(5)])
        optimizer.step()
        schedule.step()
