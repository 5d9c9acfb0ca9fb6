"""Layer-wise learning rates and the schedule over them."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from road_ds.engine.optim import depths, parameter_groups, rate_at, scheduler, warmup_steps

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "pad_token_id": 0,
}


class Both(torch.nn.Module):
    def __init__(self, architecture: str, **more):
        super().__init__()
        whole = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **SMALL, **more))
        self.encoder = whole.base_model
        self.heads = torch.nn.ModuleDict({"nli": torch.nn.ModuleDict({"classifier": whole.classifier})})


def rates_of(model: torch.nn.Module) -> dict[str, float]:
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_lr_decay=0.5)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    return {name: rate[id(p)] for name, p in model.named_parameters()}


def published_rate(name: str, layers: int) -> float:
    """google-research/electra, model/optimization.py: the tables of names and depths, and decay ** (layers + 2 - depth)."""
    depth = {"/embeddings/": 0, "/embeddings_project/": 0, "task_specific/": layers + 2}
    depth |= {f"encoder/layer_{layer}/": layer + 1 for layer in range(layers)}
    return next(0.5 ** (layers + 2 - at) for key, at in depth.items() if key in name)


@pytest.mark.parametrize("architecture", ["electra", "bert", "roberta", "deberta-v2", "modernbert"])
def test_each_layer_has_the_published_rate(architecture):
    model = Both(architecture)
    rates, layers = rates_of(model), "encoder.layers" if architecture == "modernbert" else "encoder.encoder.layer"
    for layer in range(3):
        found = {r for name, r in rates.items() if name.startswith(f"{layers}.{layer}.")}
        assert found == {published_rate(f"electra/encoder/layer_{layer}/output/dense/kernel", 3)}
    embeddings = {r for name, r in rates.items() if name.startswith("encoder.embeddings")}
    assert embeddings == {published_rate("electra/embeddings/word_embeddings", 3)} == {0.5**5}
    assert {r for name, r in rates.items() if name.startswith("heads")} == {published_rate("task_specific/x", 3)} == {1}
    between = {r for name, r in rates.items() if "pooler" in name or "final_norm" in name}
    assert between == ({0.5} if architecture in ("bert", "modernbert") else set())
    groups = parameter_groups(model, lr=1.0, weight_decay=0.1, layer_lr_decay=0.5)
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())


def test_a_projection_of_embeddings_goes_with_them():
    rates = rates_of(Both("electra", embedding_size=16))
    assert rates["encoder.embeddings_project.weight"] == published_rate("electra/embeddings_project/kernel", 3)


def test_albert_shares_its_layers():
    rates = rates_of(Both("albert", embedding_size=16))
    shared = {rate for name, rate in rates.items() if ".albert_layer_groups.0." in name}
    assert shared == {0.25}, "one layer, the top one"
    assert (
        rates["encoder.embeddings.word_embeddings.weight"]
        == rates["encoder.encoder.embedding_hidden_mapping_in.weight"]
    )
    assert (rates["encoder.embeddings.word_embeddings.weight"], rates["encoder.pooler.weight"]) == (0.125, 0.5)


def test_deberta_has_weights_beside_its_layers():
    """The norm of the relative positions goes with them, the convolution with layer 0, behind which it runs."""
    more = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"}
    rates = rates_of(Both("deberta-v2", **more, conv_kernel_size=3, conv_act="gelu"))
    assert rates["encoder.encoder.rel_embeddings.weight"] == rates["encoder.encoder.LayerNorm.weight"] == 0.5**5
    assert {rate for name, rate in rates.items() if ".conv." in name} == {0.5**4}
    assert (
        depths(["encoder.encoder.layer.1.x", "encoder.encoder.LayerNorm.bias"])["encoder.encoder.LayerNorm.bias"] == 1
    )


def test_layers_and_embeddings_by_other_names():
    names = ["encoder.embed_tokens.weight", "encoder.attentions.0.q_lin.weight", "encoder.ffns.1.lin1.weight"]
    assert list(depths(names).values()) == [4, 3, 2]
    assert depths(["encoder.encoder.layer.0.x", "encoder.encoder.relative_attention_bias.weight"]).popitem()[1] == 3


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
        assert rates == pytest.approx([rate_at(step, 10, 2, "linear") * 0.5**k for k in (0, 2, 3, 4, 5)])
        optimizer.step()
        schedule.step()
