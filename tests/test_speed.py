"""What makes a step cheaper leaves what it computes as it was, or says that it cannot."""

import os

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import TINY_ELECTRA, records, run_python, tiny_config
from test_export import ARCHITECTURES, TASKS
from test_packing import LONGEST, loss_and_gradients, rows, without_dropout

from road_ds.common.errors import RoadError
from road_ds.config.road import RoadConfig
from road_ds.data.batch import Feature
from road_ds.data.batches import Padding
from road_ds.engine import speed
from road_ds.engine.speed import choose_padding, compile_layers, prepare
from road_ds.models import apex as fused
from road_ds.models import attention, linear
from road_ds.tasks.evaluation import MemorySet

AMPERE, VOLTA = (8, 0), (7, 0)


@pytest.mark.parametrize(("arguments", "mode", "why"), [
    (("auto", "", "cuda", AMPERE, "bf16", False), "free", ""),
    (("free", "", "cuda", AMPERE, "fp16", False), "free", ""),
    (("auto", "", "cuda", AMPERE, "fp32", False), "grouped", "bf16 or fp16"),
    (("auto", "", "cuda", VOLTA, "fp16", False), "grouped", "compute capability 8.0"),
    (("free", "", "cuda", VOLTA, "fp16", False), "grouped", "compute capability 8.0"),
    (("auto", "", "cpu", None, "fp32", False), "free", ""),
    (("auto", "deberta-v2 is relative", "cpu", None, "fp32", False), "grouped", "deberta-v2 is relative"),
    (("free", "", "cpu", None, "fp32", True), "grouped", "road.compile"),
    (("auto", "", "cuda", AMPERE, "bf16", True), "free", ""),
    (("auto", "", "cuda", AMPERE, "fp32", True), "grouped", "bf16 or fp16"),
    (("fixed", "deberta-v2 is relative", "cuda", VOLTA, "fp16", True), "fixed", ""),
    (("grouped", "", "cuda", AMPERE, "bf16", False), "grouped", ""),
])  # fmt: skip
def test_the_padding_follows_device_precision_and_encoder(arguments, mode, why):
    chosen, note = choose_padding(*arguments)
    assert chosen == mode and (why in note if why else note == "")


@pytest.mark.parametrize("layers", [2, 5])
def test_packed_rows_are_compiled_once_for_all_layers_and_sizes(layers, monkeypatch):
    """As a GPU runs them, on tensors that have only a shape: no break in a layer's graph, and no other for other rows.

    The first layer's input may be a view, which is a second graph.
    """
    monkeypatch.setattr(attention, "_by_runs", attention._by_kernel)
    monkeypatch.setitem(ARCHITECTURES["electra"], "num_hidden_layers", layers)
    model, compiled = without_dropout("electra"), []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    encoder = model.encoder.to("meta", torch.bfloat16)
    encoder.set_attn_implementation(attention.ATTENTION)
    compile_layers(encoder, fullgraph=True, backend=backend)
    seen = []
    for lengths in ([5, 9, 30], [2, 40, 41], [17, 18, 19], [64, 64, 64]):
        batch = Padding("free", 0, {}).collate(
            MemorySet("rows", [Feature(np.ones(n), np.zeros(n), [0], 0) for n in lengths]), np.arange(3)
        )
        found, _ = model.encode(batch.map(lambda tensor: tensor.to("meta")))
        assert found.last_hidden_state.shape == (3, -(-max(lengths) // 8) * 8, 32)
        seen.append(len(compiled))
    assert seen == [seen[0]] * 4 and seen[0] in (1, 2)


@pytest.mark.parametrize("mode", ["free", "grouped"])
@pytest.mark.parametrize("architecture", ["electra", "bert", "roberta", "modernbert", "deberta-v2"])
def test_activation_checkpointing_changes_no_gradient(architecture, mode):
    model, source = without_dropout(architecture), rows(TASKS["qa"])
    mode = "grouped" if model.use_packing() else mode
    expected, gradients = loss_and_gradients(model, "qa", source, mode)
    model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    runs: list[int] = []
    layers = next(module for module in model.encoder.modules() if isinstance(module, torch.nn.ModuleList))
    layers[0].register_forward_pre_hook(lambda *_: runs.append(1))
    found, others = loss_and_gradients(model, "qa", source, mode)
    assert found == expected
    assert len(runs) == 2 * 4, "four micro-batches, each layer once more on the way back"
    assert all(torch.allclose(others[name], value, atol=1e-7) for name, value in gradients.items())


def test_activation_checkpointing_says_where_there_is_none(config_file):
    model = {"architecture": "albert", "tokenizer": "sample:tokenizer", "config": TINY_ELECTRA}
    path = config_file(tiny_config(model=model, activation_checkpointing=True))
    done = run_forked("road_ds/train.py", "--deepspeed_config", path)
    assert done.returncode == 2 and "transformers has none for albert" in done.stderr


def test_freed_memory_is_kept(monkeypatch):
    """Counted in pages that the system had to hand out again.

    The first ten fills are not counted: glibc's cache for small pieces takes seven, each an alignment's cut that splits the large ones.
    """
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    code = """
import resource, torch
from road_ds.engine.speed import keep_freed_memory
def fill(times):
    for _ in range(times):
        torch.empty(2**24).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(-fill(10) + fill(20))
keep_freed_memory()
print(-fill(10) + fill(20))
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    plain, kept = map(int, done.stdout.split()[-2:])
    assert kept < 200 <= plain


def test_heads_follow_each_other_in_one_order_whichever_is_active():
    """As ZeRO 3 needs it to fetch weights ahead."""
    model, orders = without_dropout("electra"), []
    for name, module in model.heads.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, name=name: orders[-1].append(name))
    for head, task in TASKS.items():
        orders.append([])
        model(Padding("grouped", 0, {"rows": LONGEST}).collate(rows(task), np.arange(4)), head)
    assert len(orders) > 2 and len(orders[0]) > 2 and all(order == orders[0] for order in orders)


def run(config_file, name, **road):
    """The step lines of a tiny run with dropout off."""
    ds = {key: road.pop(key) for key in ("zero_optimization",) if key in road}
    path = config_file(tiny_config(steps=4, log_every=2, **road) | ds, name)
    done = run_forked("road_ds/train.py", "--deepspeed_config", path)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in records(path.parent / name) if "loss" in line], done.stdout


def test_paddings_train_alike_and_tell_what_they_compute(config_file):
    """The whole loop under DeepSpeed: same rows, same losses, each with its own share of padding."""
    runs = {mode: run(config_file, mode, padding=mode)[0] for mode in ("free", "grouped", "fixed")}
    for mode, lines in runs.items():
        assert [line["datasets"] for line in lines] == [line["datasets"] for line in runs["fixed"]]
        assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in runs["fixed"]], abs=1e-5)
        assert [line["grad_norm"] for line in lines] == pytest.approx(
            [line["grad_norm"] for line in runs["fixed"]], rel=1e-4
        ), mode
    for free, grouped, fixed in zip(runs["free"], runs["grouped"], runs["fixed"], strict=True):
        assert free["padding"] == 0 < grouped["padding"] < fixed["padding"] < 1


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_one_graph_serves_batches_of_every_width(dropout, monkeypatch):
    monkeypatch.setattr(linear, "LEAST", 2**17)  # between 64 x 32 x 32 and 224 x 32 x 32
    monkeypatch.setattr(speed, "mkl_is_slow", lambda: True)
    model, graphs, real = without_dropout("electra"), [], torch.compile
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout

    def counted(graph, example):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda call, **settings: real(call, backend=counted, **settings))
    config = RoadConfig.model_validate(tiny_config(compile=True)["road"])
    mode, _ = prepare(model, config, {"zero_optimization": {"stage": 0}}, "cpu", None, "fp32")
    padding, source = Padding(mode, 0, {"rows": LONGEST}), rows(TASKS["nli"])
    for length in (12, 20, 33, 50):
        near = np.argsort(abs(np.asarray(source.lengths) - length))[:4]
        model(padding.collate(source, near), "nli").logits.sum().backward()
    assert mode == "grouped" and len(graphs) in (1, 2), "the first layer's input may be a view"


def test_attention_on_a_gpu_makes_no_plan_for_each_shape():
    """A run's, and a predictor's: cuDNN's, which torch would take first where it can."""
    config = RoadConfig.model_validate(tiny_config()["road"])
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        prepare(without_dropout("electra"), config, {"zero_optimization": {"stage": 0}}, "cuda", AMPERE, "bf16")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_compiled_encoder_trains_alike(config_file):
    """Really compiled, so on few rows: one data set, batches of one or two widths."""
    few = {"passes": 1, "datasets": {"inference": tiny_config()["road"]["datasets"]["inference"]}}
    few["tasks"] = {"inference": tiny_config()["road"]["tasks"]["inference"]}
    plain, _ = run(config_file, "plain", **few)
    compiled, told = run(config_file, "compiled", compile=True, padding="free", **few)
    assert "road.padding is grouped, not free: on a CPU road.compile" in told
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], abs=1e-5)


def test_compile_is_refused_under_zero_3(config_file):
    path = config_file(tiny_config(compile=True) | {"zero_optimization": {"stage": 3}})
    done = run_forked("road_ds/train.py", "--deepspeed_config", path)
    assert done.returncode == 2 and "road.compile: ZeRO 3 gathers weights" in done.stderr


def test_an_encoder_that_cannot_run_packed_falls_back_in_one_line(config_file):
    small = {key: TINY_ELECTRA[key] for key in TINY_ELECTRA if key != "embedding_size"}
    model = {"architecture": "deberta-v2", "tokenizer": "sample:tokenizer", "config": small}
    lines, told = run(config_file, "deberta", model=model)
    assert told.count("road.padding is grouped, not free: ") == 1 and all(line["padding"] > 0 for line in lines)


@pytest.fixture
def apex(tmp_path, monkeypatch):
    """Puts a package called apex on the path, NVIDIA's or the other one."""

    def install(*parts: str):
        root = tmp_path / "packages" / "apex"
        for name in ("", *parts):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / "__init__.py").write_text("raise RuntimeError('imported')\n" if not parts else "")
        monkeypatch.syspath_prepend(str(root.parent))
        return root

    return install


def test_the_other_package_called_apex_is_told_apart(apex):
    assert fused.installed() == "none" and fused.use_apex("auto", "cuda") == (False, "")
    apex()
    assert fused.installed() == "other"
    used, told = fused.use_apex("auto", "cuda")
    assert not used and "another project, not NVIDIA Apex" in told
    with pytest.raises(RoadError, match=r'road.apex is "on".*another project'):
        fused.use_apex("on", "cuda")
    assert fused.use_apex("off", "cuda") == (False, "")


def test_nvidias_apex_is_used_on_a_gpu_only(apex):
    apex("normalization", "optimizers")
    assert fused.use_apex("auto", "cuda") == (True, "") and fused.use_apex("auto", "cpu") == (False, "")
    with pytest.raises(RoadError, match="run on a GPU, this run is on CPU"):
        fused.use_apex("on", "cpu")


def test_apex_asked_for_and_missing_is_an_error():
    with pytest.raises(RoadError, match="NVIDIA Apex is not installed"):
        fused.use_apex("on", "cuda")


def test_apex_norms_take_over_the_same_weights(apex, monkeypatch):
    """With a stand-in for Apex's class, whose signature it has."""
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)
    root = apex("normalization", "optimizers")
    (root / "normalization" / "__init__.py").write_text(
        "import torch\n\nclass FusedLayerNorm(torch.nn.LayerNorm):\n    def __init__(self, normalized_shape, eps=1e-5, "
        "elementwise_affine=True, memory_efficient=False):\n        super().__init__(normalized_shape, eps)\n"
    )
    model, source = without_dropout("bert"), rows(TASKS["nli"])
    model.use_packing()
    expected, _ = loss_and_gradients(model, "nli", source, "free")
    names = list(model.state_dict())
    assert fused.fuse_norms(model.encoder) == 5  # the embeddings', and two in each of two layers
    assert list(model.state_dict()) == names
    assert loss_and_gradients(model, "nli", source, "free")[0] == expected


def test_a_runs_bucket_is_no_larger_than_its_model(config_file, tmp_path):
    """What the engine is given; DeepSpeed's own bucket of gradients has 5e8 elements for any model."""
    path = config_file(tiny_config() | {"zero_optimization": {"stage": 2}})
    script = tmp_path / "script.py"
    script.write_text(f"""
import runpy, sys, deepspeed
def initialize(*, model, config, **others):
    count = sum(parameter.numel() for parameter in model.parameters())
    print("bounded", config["zero_optimization"] == {{"stage": 2, "reduce_bucket_size": count}})
    sys.exit()
deepspeed.initialize = initialize
sys.argv = ["train.py", "--deepspeed_config", {str(path)!r}]
runpy.run_path("road_ds/train.py", run_name="__main__")
""")
    done = run_forked(script)
    assert "bounded True" in done.stdout, done.stdout + done.stderr


def test_one_process_without_zero_reduces_nothing_and_trains_every_weight(config_file, tmp_path):
    """With more processes DeepSpeed fills in the gradients that are missing, so weights that nothing uses decay there too."""
    config = tiny_config() | {"optimizer": {"type": "AdamW", "params": {"lr": 0.1, "weight_decay": 0.5}}}
    script = tmp_path / "script.py"
    script.write_text(f"""
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from road_ds import train
calls, plain, build = [], DeepSpeedEngine.allreduce_bucket, train.build_model
DeepSpeedEngine.allreduce_bucket = lambda *given, **more: calls.append(1) or plain(*given, **more)
unused = torch.nn.Parameter(torch.ones(2, 2))
def built(*given, **more):
    model = build(*given, **more)
    model.encoder.pooler_unused = unused  # by its name the export lets it pass
    return model
train.build_model = built
train.main(["--deepspeed_config", {str(config_file(config))!r}])
print("reduced", len(calls), "decayed", bool((unused < 1).all()))
""")
    done = run_forked(script)
    assert "reduced 0 decayed True" in done.stdout, done.stdout + done.stderr
