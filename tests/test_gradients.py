"""The engine's averaged gradients against a plain PyTorch loop that knows nothing of it."""

import json
from pathlib import Path

import pytest
import torch
from forked import run_forked
from runs import environment, free_port, records, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from road_ds import train
from road_ds.config.file import load_config
from road_ds.data.batch import Batch
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.models.multi_task import MultiTaskModel
from road_ds.tasks.registry import heads

DECAY = 0.5
ADAMW = {"type": "AdamW", "params": {"lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-3, "weight_decay": 0.1}}


def share(name: str) -> float:
    """The layer-wise share of a tensor's rate, by its name in a model folder of two layers."""
    depths = {"electra.embeddings.": 4, "electra.encoder.layer.0.": 3, "electra.encoder.layer.1.": 2}
    return DECAY ** next((depth for start, depth in depths.items() if name.startswith(start)), 0)


def sgd(named: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(named.values(), lr=0.1)


def adamw(named: dict[str, torch.Tensor]) -> torch.optim.Optimizer:
    """PyTorch's, as it stands there for one tensor at a time, with a group for each."""
    params = ADAMW["params"]
    groups = [
        {"params": [p], "lr": params["lr"] * share(name), "weight_decay": params["weight_decay"] * (p.ndim > 1)}
        for name, p in named.items()
    ]
    return torch.optim.AdamW(groups, betas=params["betas"], eps=params["eps"], foreach=False)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, cache):
    """The plain loop with SGD."""
    return plain_loop(tmp_path_factory.mktemp("plain"), cache, sgd)


@pytest.fixture(scope="module")
def plain_adamw(tmp_path_factory, cache):
    """The plain loop with AdamW and layer-wise rates."""
    return plain_loop(tmp_path_factory.mktemp("plain"), cache, adamw)


def plain_loop(folder: Path, cache: Path, optimizer):
    """The weights and losses of the plain loop: own batching, own losses, own clipping, one process."""
    path = folder / "plain.json"
    path.write_text(json.dumps(tiny_config(cache=str(cache), output=str(folder / "run"))))
    config, ds = load_config(path)
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train
    passes, steps = plan(config, ds["train_batch_size"], {name: source.lengths for name, source in rows.items()})
    initial = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=config.seed)
    export(initial, initial.state_dict(), tokenizer, folder / "initial")
    models = {
        "qa": AutoModelForQuestionAnswering.from_pretrained(folder / "initial" / "qa"),
        "inference": AutoModelForSequenceClassification.from_pretrained(folder / "initial" / "inference"),
        "paraphrase": AutoModelForSequenceClassification.from_pretrained(folder / "initial" / "paraphrase"),
    }
    for model in models.values():
        model.electra = models["qa"].electra
        model.train()
    named = {
        name: p for model in models.values() for name, p in model.named_parameters() if name.startswith("electra.")
    }
    heads_only = {f"{head} {name}": p for head, model in models.items() for name, p in model.named_parameters()}
    named |= {name: p for name, p in heads_only.items() if " electra." not in name}
    parameters, updates = list(named.values()), optimizer(named)

    def loss_of(name: str, row: int) -> torch.Tensor:
        feature = rows[name][row]
        inputs = {
            "input_ids": torch.tensor([feature.input_ids.tolist()]),
            "token_type_ids": torch.tensor([feature.token_type_ids.tolist()]),
        }
        output = models[config.head_of(name)](**inputs)
        if name in ("places", "people"):
            start, end = (torch.tensor([int(label)]) for label in feature.labels)
            return (F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits, end)) / 2
        return F.cross_entropy(output.logits, torch.tensor([int(feature.labels[0])]))

    losses, norms = [], []
    for step in range(steps):
        total = sum(
            torch.stack([loss_of(taken.dataset, row) for row in taken.rows]).mean() / config.passes
            for taken in passes.draw(step)
        )
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        norms.append(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item())
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient / max(1.0, norms[-1])  # the default clips to 1
        updates.step()
        losses.append(total.item())
    weights = {name: {k: v.detach() for k, v in model.state_dict().items()} for name, model in models.items()}
    drawn = [[taken.dataset for taken in passes.draw(step)] for step in range(steps)]
    return weights, losses, norms, drawn


def compare(folder: Path, plain) -> None:
    weights, losses, norms, drawn = plain
    lines = [line for line in records(folder) if "loss" in line]
    assert [line["datasets"] for line in lines] == drawn
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    for head, expected in weights.items():
        found = load_file(folder / "model" / head / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error < 1e-6, f"{head} {name}: off by {error:.2g}"


def test_the_heads_alternate(plain):
    """The comparison means something only where steps mix heads and some heads rest."""
    _, losses, norms, drawn = plain
    head = {"places": "qa", "people": "qa", "inference": "inference", "paraphrase": "paraphrase"}
    used = [frozenset(head[name] for name in step) for step in drawn]
    assert (
        any(len(step) > 1 for step in used) and any(len(step) < 3 for step in used) and len(frozenset.union(*used)) == 3
    )
    assert losses[0] != losses[-1]
    assert min(norms) < 1 < max(norms), "some steps are clipped"


@pytest.mark.parametrize(("stage", "ranks", "micro"), [
    (0, 1, 8), (1, 1, 2), (2, 1, 4), (3, 1, 2), (0, 2, 2), (1, 2, 4), (2, 2, 2), (3, 2, 2),
])  # fmt: skip
def test_parameters_equal_a_plain_loop(plain, config_file, tmp_path, stage, ranks, micro):
    config = tiny_config()
    config["zero_optimization"] = {"stage": stage}
    if stage == 3:  # by default parameters this small are never let go
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    config["train_micro_batch_size_per_gpu"] = micro
    result = run_forked("road_ds/train.py", "--deepspeed_config", config_file(config), ranks=ranks)
    assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain)


@pytest.mark.parametrize(("stage", "ranks", "micro"), [(s, r, 4 // r) for r in (1, 2) for s in range(4)])
def test_layer_wise_adamw_equals_a_plain_group_for_each_tensor(plain_adamw, config_file, tmp_path, stage, ranks, micro):
    config = tiny_config(layer_lr_decay=DECAY) | {"zero_optimization": {"stage": stage}, "optimizer": ADAMW}
    config["train_micro_batch_size_per_gpu"] = micro
    path = config_file(config)
    if ranks == 1:
        assert train.main(["--deepspeed_config", str(path)]) == 0
    else:
        result = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=ranks)
        assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain_adamw)


@pytest.mark.parametrize(
    ("stage", "ranks", "micro"), [(0, 1, 2), (1, 1, 4), (2, 1, 2), (0, 2, 2), (1, 2, 2), (2, 2, 2)]
)
def test_joined_micro_batches_equal_a_plain_loop(plain, config_file, tmp_path, monkeypatch, stage, ranks, micro):
    """Several data sets, and one data set twice, in a forward pass: the same rows, losses, norms and weights."""
    config = tiny_config(join_micro_batches=True) | {"zero_optimization": {"stage": stage}}
    config["train_micro_batch_size_per_gpu"] = micro
    path, read = config_file(config), []
    if ranks == 1:
        forward = MultiTaskModel.forward
        monkeypatch.setattr(
            MultiTaskModel, "forward", lambda model, batch, *more: read.append(batch) or forward(model, batch, *more)
        )
        assert train.main(["--deepspeed_config", str(path)]) == 0
        together = [batch for batch in read if isinstance(batch, tuple)]
        assert any(len({one.dataset for one in some}) > 1 for some in together)
        pieces = sum(
            len(batch) if isinstance(batch, tuple) else 1
            for batch in read
            if not isinstance(batch, Batch) or batch.reading is not None
        )
        assert pieces == 5 * 24 // micro > len(together)
    else:
        result = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=ranks)
        assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain)


def test_two_hosts_train_on_the_same_rows(plain, config_file, tmp_path):
    """Two hosts of one process each, by hostfile and without ssh: the same line on each host."""
    import subprocess
    import sys

    hostfile = tmp_path / "hostfile"
    hostfile.write_text("first slots=1\nsecond slots=1\n")
    config, port = config_file(tiny_config()), str(free_port())
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    hosts = [
        subprocess.Popen(
            [deepspeed, "--hostfile", hostfile, "--no_ssh", "--node_rank", str(rank), "--master_addr", "127.0.0.1",
             "--master_port", port, "road_ds/train.py", "--deepspeed_config", config],
            cwd=Path(__file__).resolve().parent.parent, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    outputs = [host.communicate(timeout=240)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs[0][-3000:]
    compare(tmp_path / "run", plain)
