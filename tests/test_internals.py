"""What is left out of DeepSpeed's step changes no weight, is left out indeed, and hangs on parts of DeepSpeed that are still there."""

import sys

import deepspeed
import pytest
import torch
from deepspeed.runtime.zero import stage3, stage_1_and_2, utils
from runs import TINY_ELECTRA

from road_ds.common.ranks import Ranks
from road_ds.config.fit import fit_batch, fit_optimizer, fit_precision
from road_ds.config.road import ModelSpec, RateSettings
from road_ds.data.batches import Padding
from road_ds.distillation.objective import supervised
from road_ds.engine import internals
from road_ds.engine.adamw import LayerwiseAdamW
from road_ds.engine.optim import parameter_groups, scheduler
from road_ds.engine.start import start, takes_pieces
from road_ds.loop import step_engine
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.registry import task_from

PIECES, STEPS, DECAY = 3, 4, 0.5
STAGES = {1: stage_1_and_2, 2: stage_1_and_2, 3: stage3}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """One process, which has ZeRO 3's engine here all the same."""
    Ranks.start()
    monkeypatch.setattr("road_ds.engine.start.fit_stage", lambda ds, processes: ds)


def settings(stage: int, precision: str = "fp32") -> dict:
    ds = {
        "train_batch_size": 4 * PIECES,
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-4}},
        "zero_optimization": {"stage": stage} | ({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),
    }
    ds |= fit_batch(ds, 1, 1)
    if precision == "fp16":  # which a run refuses on a CPU
        ds["fp16"] = {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 2, "hysteresis": 1}
    else:
        fit_precision(ds, precision, "cpu", None)
    fit_optimizer(ds, "cpu")
    return ds


def model():
    spec = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config=TINY_ELECTRA)
    task = task_from({"type": "classification", "labels": ["a", "b", "c"], "max_length": 32}, "mood")
    return build_model(spec, {"mood": task}, load_tokenizer(spec), dropout=0.0, seed=0)


def new_way(stage: int, precision: str = "fp32"):
    rates = RateSettings(warmup=0, schedule="linear", layer_lr_decay=DECAY)
    return start(model(), settings(stage, precision), rates, steps=100, seed=0)


def old_way(stage: int, precision: str = "fp32"):
    """DeepSpeed as it comes, torch's AdamW with a group for each rate and decay."""
    own, ds = model(), settings(stage, precision)
    groups = parameter_groups(own, lr=0.01, weight_decay=0.1, layer_lr_decay=DECAY)
    engine, *_ = deepspeed.initialize(
        model=own, model_parameters=groups, config=ds, lr_scheduler=scheduler(100, 0, "linear")
    )
    return engine


def batch(seed: int):
    from test_packing import rows as rows_of

    task = task_from({"type": "classification", "labels": ["a", "b", "c"], "max_length": 32}, "mood")
    return Padding("grouped", 0, {"rows": 64}).collate(rows_of(task), [4 * (seed % 2) + i for i in range(4)])


def train(engine, steps: int = STEPS, spoilt: int | None = None) -> list[tuple[bool, float]]:
    """Whether each step was applied, and its norm; the loss of one step is infinite."""
    found = []
    for step in range(steps):
        for piece in range(PIECES):
            given = batch(step * PIECES + piece)
            loss = supervised(engine(given, "mood"), given.labels).total
            engine.backward(loss * torch.inf if step == spoilt else loss)
            applied, norm = step_engine(engine)
        found.append((applied, float(norm)))
    return found


def weights(engine) -> dict[str, torch.Tensor]:
    return {name: deepspeed.utils.safe_get_full_fp32_param(p).clone() for name, p in engine.module.named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_are_those_of_deepspeed_as_it_comes(stage, precision):
    old, new = old_way(stage, precision), new_way(stage, precision)
    assert len(old.optimizer.param_groups) > 2 == len(new.optimizer.param_groups)
    found, expected = train(new), train(old)
    assert [norm for _, norm in found] == pytest.approx([norm for _, norm in expected], rel=1e-5)
    mine = weights(new)
    assert max(float((mine[name] - value).abs().max()) for name, value in weights(old).items()) < 2e-6


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_not_finite_is_skipped(stage):
    engine = new_way(stage)
    train(engine, 1)
    before = weights(engine)
    assert train(engine, 1, spoilt=0) == [(False, float("inf"))]
    assert all(torch.equal(before[name], value) for name, value in weights(engine).items())
    assert train(engine, 1)[0][0]


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_lowers_its_loss_scale_at_an_overflow_and_raises_it_later(stage, monkeypatch):
    accelerator = type(deepspeed.accelerator.get_accelerator())
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda self: True)
    scales = {}
    for way in (old_way, new_way):
        engine = way(stage, "fp16")
        scales[way] = []
        for spoilt in (None, 0, None, None, None):
            (applied, _), *_ = train(engine, 1, spoilt)
            assert applied == (spoilt is None)
            scales[way].append(engine.optimizer.loss_scale)
    assert scales[new_way] == scales[old_way] and min(scales[new_way]) < 16 == scales[new_way][0]


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_counted_nor_looked_at_one_by_one(stage, monkeypatch):
    calls = {"counted": 0, "looked": 0, "viewed": 0}

    def noted(what, function):
        def call(*arguments, **more):
            calls[what] += 1
            return function(*arguments, **more)

        return call

    module = STAGES[stage]
    kind = module.DeepSpeedZeroOptimizer if stage < 3 else module.DeepSpeedZeroOptimizer_Stage3
    monkeypatch.setattr(
        module, "count_used_parameters_in_backward", noted("counted", module.count_used_parameters_in_backward)
    )
    monkeypatch.setattr(kind, "check_overflow", noted("looked", kind.check_overflow))
    if stage < 3:
        monkeypatch.setattr(kind, "_update_model_bit16_weights", noted("viewed", kind._update_model_bit16_weights))
    old, new = old_way(stage, "bf16"), new_way(stage, "bf16")
    calls["viewed"] = 0  # both make the views once
    train(old, 2)
    assert calls["counted"] == 2 * PIECES and (calls["viewed"] > 0) == (stage < 3)
    assert calls["looked"] == (2 if stage < 3 else 0), "ZeRO 3 looks in fp16 only"
    calls |= dict.fromkeys(calls, 0)
    train(new, 2)
    assert calls == {"counted": 0, "looked": 0, "viewed": 0}
    assert len(old.optimizer._grad_acc_hooks) > len(new.optimizer._grad_acc_hooks) == 0 or stage == 3


@pytest.mark.parametrize("stage", STAGES)
def test_the_engine_itself_ends_a_backward_pass(stage, monkeypatch):
    """What makes the count needless: the end that it looks for is ignored inside engine.backward."""
    ends = []
    end = deepspeed.DeepSpeedEngine._backward_epilogue
    monkeypatch.setattr(deepspeed.DeepSpeedEngine, "_backward_epilogue", lambda self: ends.append(1) or end(self))
    for way in (old_way, new_way):
        ends.clear()
        train(way(stage), 2)
        assert len(ends) == 2 * PIECES


def test_nothing_is_compiled_for_an_optimizer_that_no_run_has(monkeypatch):
    """ZeRO imports Muon to tell that an optimizer is none."""
    compiled, muon = [], "deepspeed.runtime.zero.muon.original_muon"
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    for way in (new_way, old_way):
        for name in [name for name in sys.modules if ".muon." in name]:
            monkeypatch.delitem(sys.modules, name)
        train(way(1), 1)
        assert muon in sys.modules and bool(compiled) == (way is old_way)


def test_gradients_are_reduced_without_hooks():
    """As several processes do it under ZeRO 1, here with one."""
    plain, other = old_way(1), old_way(1)
    internals.reduce_without_hooks(other.optimizer)
    assert train(plain) == train(other) and not other.optimizer._grad_acc_hooks
    mine = weights(other)
    assert all(torch.equal(mine[name], value) for name, value in weights(plain).items())


def test_weights_that_were_moved_are_found():
    engine = new_way(1)
    parameter = engine.optimizer.bit16_groups[0][0]
    parameter.data = parameter.data.clone()
    train(engine, 1)
    flat = engine.optimizer.bit16_groups_flat[0]
    assert parameter.data_ptr() == flat.data_ptr() and torch.equal(parameter.view(-1), flat[: parameter.numel()])


def test_norms_of_many_gradients_and_of_none_that_is_finite():
    own = new_way(1).optimizer
    gradients = [torch.randn(3, 4), torch.randn(7)]
    whole = torch.cat([gradient.view(-1) for gradient in gradients])
    assert float(own.get_grad_norm_direct(gradients, None)) == pytest.approx(float(whole.norm()))
    for bad in (torch.inf, torch.nan):
        gradients[1][2] = bad
        assert float(own.get_grad_norm_direct(gradients, None)) == -1


@pytest.mark.parametrize("stage", range(4))
def test_every_parameter_has_its_share(stage):
    engine = new_way(stage)
    pieces = [piece for found in engine_pieces(engine).values() for piece in found]
    count = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    assert sum(piece.stop - piece.start for piece in pieces) == count
    assert {piece.share for piece in pieces} == {1, DECAY**2, DECAY**3, DECAY**4}


def engine_pieces(engine):
    own = engine.optimizer
    return (own if isinstance(own, LayerwiseAdamW) else own.optimizer).pieces


def test_the_optimizer_is_one_that_zero_knows():
    internals.support(LayerwiseAdamW)
    internals.support(LayerwiseAdamW)
    assert utils.ZERO_SUPPORTED_OPTIMIZERS.count(LayerwiseAdamW) == 1


@pytest.mark.parametrize(("params", "more"), [
    ({"amsgrad": True}, {}), ({"fused": False}, {}), ({"foreach": True}, {}), ({"torch_adam": False}, {}),
    ({}, {"data_types": {"grad_accum_dtype": "fp32"}}), ({}, {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}),
])  # fmt: skip
def test_other_optimizers_keep_their_way(params, more):
    ds = settings(1) | more
    assert takes_pieces(settings(1))
    ds["optimizer"]["params"] |= params
    assert not takes_pieces(ds)
    assert not takes_pieces(settings(1) | {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}})
