"""The projection against public figures, and where its parts are known by hand."""

import numpy as np
import pytest
import torch
from test_bench import load as load
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from road_ds.models import attention as packing

V100_HALF = 125e12


@pytest.fixture
def project(load):
    for name in ("measure", "length_mix", "presets"):
        load(name)
    return load("project")


def test_one_factor_gives_back_both_public_pairs_of_rates(project):
    """BERT-large on a V100: from 128 tokens to 512, and back."""
    for short, long in project.PUBLIC.values():
        assert project.at_length(project.BERT_LARGE, short, 128, 512) == pytest.approx(long, rel=0.05)
        assert project.at_length(project.BERT_LARGE, long, 512, 128) == pytest.approx(short, rel=0.05)


def test_the_work_of_a_row_is_that_of_the_public_figures(project):
    """DeepSpeed states 64 TFLOP/s for its 272 sequences/s: half of a V100's peak."""
    config = project.BERT_LARGE
    assert project.parameters_of(config) == pytest.approx(335e6, rel=0.01)
    tokens = 128
    plain = project.work(config, tokens) - (project.ATTENTION - 1) * 12 * 24 * 1024 * tokens**2
    assert 272 * plain == pytest.approx(64e12, rel=0.02)
    assert 0.5 < 272 * plain / V100_HALF < 0.53


def settings(**changes):
    return {"rows": 512, "micro": 16, "gpus": 8, "hosts": 1, "stage": 1, "half": True, **changes}


def test_one_gpu_computes_at_its_own_rate(project):
    step = project.project(335e6, 74, project.MACHINES["v100"], **settings(gpus=1, stage=0))
    assert step.compute == pytest.approx(512 / 74) and step.gradients == step.weights == 0
    assert 0.98 < step.rate / 74 < 1


def test_more_gpus_are_faster_and_never_more_than_in_proportion(project):
    for stage in range(4):
        rates = [
            project.project(335e6, 74, project.MACHINES["v100"], **settings(gpus=n, stage=stage)).rate
            for n in (1, 2, 4, 8)
        ]
        assert rates == sorted(rates)
        assert all(rate <= 74 * gpus for rate, gpus in zip(rates, (1, 2, 4, 8), strict=True))


def test_a_slow_network_costs_what_it_must_move(project):
    """ZeRO 3 moves weights with every micro-batch: over a slow network it is the slowest, ZeRO 1 the fastest."""
    slow = [
        project.project(335e6, 74, project.MACHINES["v100"], **settings(gpus=16, hosts=2, stage=n)).rate
        for n in range(4)
    ]
    assert slow[3] < slow[1] and slow[2] < slow[1] < slow[0]
    step = project.project(335e6, 1e9, project.MACHINES["v100"], **settings(gpus=16, hosts=2, stage=0))
    assert step.gradients == pytest.approx(2 * 15 / 16 * 335e6 * 2 / 1.5e9, rel=1e-3), "nothing to hide behind"


def test_memory_is_that_of_the_zero_paper(project):
    """Figure 1 of the ZeRO paper: 7.5 B parameters on 64 GPUs, in GB."""
    rows = project.memory_of(int(7.5e9), project.BERT_LARGE, tokens=6144, gpus=64, half=True)
    held = [row["weights, gradients, Adam"] / 1e9 for row in rows]
    assert held == pytest.approx([120, 31.4, 16.6, 1.88], rel=0.01)
    assert [row["with Adam offloaded"] and row["with Adam offloaded"] / 1e9 for row in rows] == [
        None, pytest.approx(30), pytest.approx(15.23, rel=0.01), pytest.approx(0.469, rel=0.01),
    ]  # fmt: skip


def test_checkpointing_keeps_one_tensor_a_layer(project):
    whole, less = (
        project.memory_of(1, project.BERT_LARGE, tokens=1000, gpus=1, half=True, checkpointing=on)[0]["activations"]
        for on in (False, True)
    )
    assert whole == 24 * 34 * 1024 * 1000 and less == (34 + 24 * 2) * 1024 * 1000


def test_activations_are_what_autograd_keeps(project, monkeypatch):
    """Counted without a GPU: electra-large's encoder on packed rows as a GPU runs them, on tensors that have only a shape."""
    rows, longest = 16, 384
    monkeypatch.setattr(packing, "_by_runs", packing._by_kernel)
    monkeypatch.setattr(
        F, "dropout", lambda x, p=0.5, training=True, inplace=False: torch.native_dropout(x, p, training)[0]
    )
    config = {**project.PRESETS["electra-large"].config, "dtype": torch.bfloat16}
    with torch.device("meta"):
        encoder = AutoModel.from_config(AutoConfig.for_model("electra", **config)).train()
        tokens = torch.zeros(1, rows * longest, dtype=torch.long)
    encoder.set_attn_implementation(packing.ATTENTION)
    packed = packing.Packing.of(np.full(rows, longest), longest).map(lambda tensor: tensor.to("meta"))
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder(input_ids=tokens, position_ids=packed.positions, packing=packed)
    weights = {parameter.untyped_storage()._cdata for parameter in encoder.parameters()}
    counted = sum(storage.nbytes() for key, storage in kept.items() if key not in weights)
    (stated, *_) = project.memory_of(1, config, tokens=rows * longest, gpus=1, half=True)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert counted == pytest.approx(stated["activations"], rel=0.01)


def test_it_prints_its_assumptions(project, capsys):
    project.main(["--rate", "74", "--gpus", "8"])
    printed = capsys.readouterr().out
    assert "The model, of one optimizer step" in printed and "fitted to public figures" in printed
    assert printed.count("| 3 |") == 2
