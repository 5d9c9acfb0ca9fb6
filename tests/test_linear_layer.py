"""Linear layers by oneDNN: torch's own results, on the same weights, wherever they stand."""

import pytest
import torch
from forked import run_forked
from runs import records, tiny_config
from torch import nn
from torch.utils.checkpoint import checkpoint

from road_ds.config.road import RoadConfig
from road_ds.engine import speed
from road_ds.models import linear
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.linear import LEAST, Linear, mkl_is_slow, replace_linear
from road_ds.tasks.registry import heads

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.fixture
def handed_over(monkeypatch):
    """How many tensors were handed to oneDNN."""
    count = []
    plain = torch.Tensor.to_mkldnn
    monkeypatch.setattr(torch.Tensor, "to_mkldnn", lambda self: count.append(self.shape) or plain(self))
    return count


def gradients(layer, values, wrap=None):
    values = values.detach().clone().requires_grad_()
    found = wrap(layer, values) if wrap else layer(values)
    found.square().sum().backward()
    wanted = [found.detach(), values.grad, layer.weight.grad, *([layer.bias.grad] if layer.bias is not None else [])]
    layer.zero_grad()
    return wanted


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(300, 128), (1, 300, 128), (4, 100, 128)])
@pytest.mark.parametrize("strided", [True, False])
def test_output_and_gradients_are_torchs(shape, bias, strided, handed_over):
    torch.manual_seed(0)
    plain = nn.Linear(128, 256, bias=bias)
    own = Linear.of(plain)
    values = torch.randn(shape).mT.contiguous().mT if strided else torch.randn(shape)
    expected, found = gradients(plain, values), gradients(own, values)
    assert len(handed_over) == 1 and own.weight is plain.weight and own.bias is plain.bias
    for one, other in zip(expected, found, strict=True):
        assert other.layout is torch.strided
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_activation_checkpointing_computes_it_again(handed_over):
    plain = nn.Linear(128, 256)
    values = torch.randn(300, 128)
    again = gradients(Linear.of(plain), values, lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    assert len(handed_over) == 2
    for one, other in zip(gradients(plain, values), again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "dtype", "compiled"),
    [(LEAST // 2**14 - 1, torch.float32, False), (512, torch.bfloat16, False), (512, torch.float32, True)],
)
def test_small_half_precision_and_compiled_products_stay_torchs(rows, dtype, compiled, handed_over):
    own = Linear(128, 128, dtype=dtype)
    values = torch.randn(rows, 128, dtype=dtype)
    expected = nn.functional.linear(values, own.weight, own.bias)
    run = torch.compile(own, backend="eager", fullgraph=True) if compiled else own
    assert torch.equal(run(values), expected) and not handed_over


def test_it_is_for_processors_whose_avx512_mkl_leaves_unused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for capability, vendor, family, slow in [
        ("AVX512", "AuthenticAMD", 26, True),
        ("AVX512", "AuthenticAMD", 25, False),
        ("AVX512", "GenuineIntel", 6, False),
        ("AVX2", "AuthenticAMD", 26, False),
    ]:
        (tmp_path / vendor).write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\n\n" * 2)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert mkl_is_slow(tmp_path / vendor) is slow
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    (tmp_path / "masked").write_text("")
    assert not mkl_is_slow(tmp_path / "masked") and not mkl_is_slow(tmp_path / "missing")


@pytest.mark.parametrize("slow", [True, False])
def test_a_run_on_such_a_cpu_takes_it_in_its_encoder(slow, monkeypatch):
    monkeypatch.setattr(speed, "mkl_is_slow", lambda: slow)
    config = RoadConfig.model_validate(tiny_config()["road"])
    model = build_model(config.model, heads(config), load_tokenizer(config.model), dropout=None, seed=0)
    names, state = {name for name, _ in model.named_parameters()}, model.state_dict()
    speed.prepare(model, config, {"zero_optimization": {"stage": 0}}, "cpu", None, "fp32")
    kinds = {type(module) for module in model.encoder.modules() if isinstance(module, nn.Linear)}
    assert kinds == {Linear if slow else nn.Linear}
    assert names == {name for name, _ in model.named_parameters()}
    now = model.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in state.items())


def test_replaced_layers_compute_what_the_model_did(monkeypatch, handed_over):
    monkeypatch.setattr(linear, "LEAST", 0)
    config = RoadConfig.model_validate(tiny_config()["road"])
    model = build_model(config.model, heads(config), load_tokenizer(config.model), dropout=None, seed=0).eval()
    ids = torch.arange(24).view(2, 12) + 5
    expected = model.encoder(ids).last_hidden_state
    count = replace_linear(model.encoder)
    torch.testing.assert_close(model.encoder(ids).last_hidden_state, expected)
    assert len(handed_over) == count > 0


def test_zero_3_trains_as_zero_0_does_with_torchs_layers(config_file, tmp_path):
    """ZeRO 3 frees a layer's weights between the passes, and replaces torch's function for linear layers."""
    losses = []
    for stage in (0, 3):
        config = tiny_config(output=str(tmp_path / str(stage)), log_every=1)
        config["zero_optimization"] = {"stage": stage}
        if stage == 3:
            config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
        script = tmp_path / f"{stage}.py"
        script.write_text(f"""
import runpy, sys, torch
from road_ds.models import linear
from road_ds.engine import speed
linear.LEAST, speed.mkl_is_slow = 0, lambda: {stage == 3}
count, plain = [], torch.Tensor.to_mkldnn
torch.Tensor.to_mkldnn = lambda self: count.append(1) or plain(self)
sys.argv = ["train.py", "--deepspeed_config", {str(config_file(config))!r}]
try:
    runpy.run_path("road_ds/train.py", run_name="__main__")
finally:
    print("handed over", len(count) > 0)
""")
        done = run_forked(script)
        assert done.returncode == 0 and f"handed over {stage == 3}" in done.stdout, done.stderr[-3000:]
        losses.append([line["loss"] for line in records(tmp_path / str(stage)) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][0] != losses[0][-1]
