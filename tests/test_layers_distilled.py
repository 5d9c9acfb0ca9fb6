"""Runs that compare layers, against a plain PyTorch loop that knows nothing of how they are compared."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked import run_forked
from runs import TINY_ELECTRA, records, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from road_ds import train
from road_ds.config.file import load_config
from road_ds.config.road import ModelSpec
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.layers.registry import method_from
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.models.states import Shape
from road_ds.tasks.registry import heads

KINDS = {
    "qa": AutoModelForQuestionAnswering,
    "inference": AutoModelForSequenceClassification,
    "paraphrase": AutoModelForSequenceClassification,
}
WIDTH, DEPTH = 48, 5  # the teachers'; the student has 32 and 2
RKD, CKD = {"method": "rkd", "weight": 20.0}, {"method": "ckd", "buckets": "overlapping", "weight": 0.3}
HIDDEN = {"method": "hidden", "map": [[1, 4], [2, 3]], "weight": 0.2}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[str]:
    """Two models of another depth and width than the student, with fresh weights and a head for each task."""
    folder, config = tmp_path_factory.mktemp("teachers"), tiny_config()
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    tasks = heads(load_config(path)[0])
    for seed in (1, 2):
        sizes = {**TINY_ELECTRA, "hidden_size": WIDTH, "num_hidden_layers": DEPTH}
        spec = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config=sizes)
        tokenizer = load_tokenizer(spec)
        model = build_model(spec, tasks, tokenizer, dropout=0.0, seed=seed)
        export(model, model.state_dict(), tokenizer, folder / str(seed))
    return [str(folder / "1"), str(folder / "2")]


def layers_config(teachers: list[str], layers: dict, **distill) -> dict:
    """Two teachers for one data set, one for another (spans), none for two."""
    named = {"inference": [f"{name}/inference" for name in teachers], "places": [f"{teachers[1]}/qa"]}
    settings = {
        "objective": "kd",
        "temperature": 3.0,
        "weight": 0.7,
        "source": "online",
        "teachers": named,
        "layers": layers,
    }
    config = tiny_config(distill={**settings, **distill})
    config["optimizer"]["params"]["lr"] = 0.05
    return config


def apart(own, theirs, weights: dict[str, torch.Tensor], layers: dict, pairs) -> torch.Tensor:
    """How far a row's states are from a teacher's; own, theirs: by layer, [tokens, width]."""
    if layers["method"] == "hidden":
        projected = [own[a] @ weights["projection.weight"].T + weights["projection.bias"] for a, _ in layers["map"]]
        terms = [states - theirs[b] for states, (_, b) in zip(projected, layers["map"], strict=True)]
        return torch.stack([term.square().mean() for term in terms]).mean()
    own, theirs = ([states[0] for states in part] for part in (own, theirs))
    if layers["method"] == "rkd":
        vectors = [own[a] @ weights["projection.weight"].T + weights["projection.bias"] for a, _ in pairs]
        terms = [v / v.norm() - theirs[b] / theirs[b].norm() for v, (_, b) in zip(vectors, pairs, strict=True)]
    else:
        terms = [
            own[layer] - torch.cat([theirs[k] for k in bucket]) @ weights[f"projections.{layer - 1}.weight"].T
            - weights[f"projections.{layer - 1}.bias"]
            for layer, bucket in ((1, [1, 2, 3]), (2, [2, 3, 4, 5]))
        ]  # fmt: skip
    return torch.stack([term.square().mean() for term in terms]).mean()


def plain_loop(folder: Path, teachers: list[str], cache: Path, layers: dict):
    """The weights of each head's model and of the projections, and the losses, of a loop row by row."""
    path = folder / "plain.json"
    config = layers_config(teachers, layers)
    config["road"] |= {"cache": str(cache), "output": str(folder / "run")}
    path.write_text(json.dumps(config))
    config, _ = load_config(path)
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train
    passes, steps = plan(config, 24, {name: source.lengths for name, source in rows.items()})
    initial = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=config.seed)
    comparison = method_from(layers).compare(Shape(2, 32, 4), Shape(DEPTH, WIDTH, 4), config.seed)
    weights = dict(comparison.named_parameters())
    export(initial, initial.state_dict(), tokenizer, folder / "initial")
    models = {head: kind.from_pretrained(folder / "initial" / head) for head, kind in KINDS.items()}
    for model in models.values():
        model.electra = models["qa"].electra
        model.train()
    asked = {
        "inference": [KINDS["inference"].from_pretrained(f"{name}/inference").eval() for name in teachers],
        "places": [KINDS["qa"].from_pretrained(f"{teachers[1]}/qa").eval()],
    }

    def said(model, feature):
        output = model(
            input_ids=torch.tensor([feature.input_ids.tolist()]),
            token_type_ids=torch.tensor([feature.token_type_ids.tolist()]),
            output_hidden_states=True,
        )
        logits = (
            torch.stack([output.start_logits[0], output.end_logits[0]]) if "start_logits" in output else output.logits
        )
        return logits, [state[0] for state in output.hidden_states]

    def loss_of(name: str, row: int, step: int) -> torch.Tensor:
        feature = rows[name][row]
        labels = torch.tensor([int(label) for label in feature.labels])
        logits, own = said(models[config.head_of(name)], feature)
        hard = F.cross_entropy(logits, labels)
        if name not in asked:
            return hard
        with torch.no_grad():
            theirs = [said(model, feature) for model in asked[name]]
        target = (torch.stack([logits for logits, _ in theirs]).mean(0) / 3).softmax(1)
        soft = F.kl_div((logits / 3).log_softmax(1), target, reduction="batchmean")
        pairs = comparison.pairs_at(step) if layers["method"] == "rkd" else None
        term = torch.stack([apart(own, states, weights, layers, pairs) for _, states in theirs]).mean()
        return 0.3 * hard + 0.7 * 9 * soft + layers["weight"] * term

    parameters = list({id(p): p for model in models.values() for p in model.parameters()}.values()) + list(
        weights.values()
    )
    losses = []
    for step in range(steps):
        total = sum(
            torch.stack([loss_of(taken.dataset, row, step) for row in taken.rows]).mean() / config.passes
            for taken in passes.draw(step)
        )
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.05 * min(1.0, 1.0 / (float(norm) + 1e-6)) * gradient
        losses.append(total.item())
    drawn = {taken.dataset for step in range(steps) for taken in passes.draw(step)}
    assert drawn == {"places", "people", "inference", "paraphrase"}, "the comparison wants all kinds of data sets"
    found = {head: {name: p.detach() for name, p in model.state_dict().items()} for head, model in models.items()}
    return found, weights, losses


@pytest.fixture(scope="module")
def plain(teachers, cache, tmp_path_factory):
    """The plain loop of each method, made once."""
    made = {}

    def plain(layers: dict):
        name = layers["method"]
        if name not in made:
            made[name] = plain_loop(tmp_path_factory.mktemp("plain"), teachers, cache, layers)
        return made[name]

    return plain


def compare(folder: Path, plain, tolerance: float = 1e-6) -> None:
    models, _, losses = plain
    lines = [line for line in records(folder) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=10 * tolerance)
    for head, expected in models.items():
        found = load_file(folder / "model" / head / "model.safetensors")
        assert found.keys() == expected.keys(), "projections stay at home"
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error < tolerance, f"{head} {name}: off by {error:.2g}"


@pytest.mark.parametrize(
    ("layers", "stage", "ranks", "micro"),
    [(RKD, 0, 1, 8), (HIDDEN, 1, 1, 4), (RKD, 2, 2, 2), (CKD, 3, 2, 2)],
    ids=["rkd, ZeRO 0", "hidden, ZeRO 1", "rkd, ZeRO 2, two ranks", "ckd, ZeRO 3, two ranks"],
)
def test_layers_compared_inside_mtl_equal_a_plain_loop(
    plain, teachers, config_file, tmp_path, layers, stage, ranks, micro
):
    """Packed rows, spans, two teachers and one, data sets without any, projections that rest there."""
    config = layers_config(teachers, layers)
    config["zero_optimization"] = {"stage": stage}
    if stage == 3:  # by default parameters this small are never let go
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    config["train_micro_batch_size_per_gpu"] = micro
    config["road"]["save_every"] = 5 if stage == 0 else 0
    path = config_file(config)
    if ranks == 1:
        assert train.main(["--deepspeed_config", str(path)]) == 0
    else:
        result = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=ranks)
        assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain(layers))
    line = next(line for line in records(tmp_path / "run") if "layers/places" in line)
    parts = 0.3 * line["hard/places"] + 0.7 * 9 * line["soft/places"] + layers["weight"] * line["layers/places"]
    assert line["loss/places"] == pytest.approx(parts, rel=1e-5) and "layers/people" not in line
    if stage == 0:
        (path,) = (tmp_path / "run" / "checkpoints").rglob("mp_rank_00_model_states.pt")
        saved = torch.load(path, weights_only=False)["module"]
        for name, value in plain(layers)[1].items():
            assert torch.allclose(saved[f"comparison.{name}"], value, atol=1e-6)


def test_states_from_the_disk_give_the_same_trajectory(plain, teachers, config_file, tmp_path, command):
    """`teach` keeps them beside the logits; from there the run learns the same, but for float16."""
    config = layers_config(teachers, RKD, source="cached", dtype="float32", cache=str(tmp_path / "targets"))
    path = config_file(config)
    assert command("teach", "--deepspeed_config", path)[0] == 0
    assert train.main(["--deepspeed_config", str(path)]) == 0
    compare(tmp_path / "run", plain(RKD), tolerance=2e-4)
    place = next((tmp_path / "targets" / "places").iterdir())
    assert json.loads((place / "manifest.json").read_text())["origin"]["vectors"] == [DEPTH, WIDTH]


def test_soft_targets_without_states(teachers, config_file, tmp_path, command, capsys):
    """Where layers are compared they are refused, in one line, and made anew; those with states do for logits alone too."""
    settings = {"source": "cached", "cache": str(tmp_path / "targets")}
    logits, states = (config_file(layers_config(teachers, layers, **settings), str(layers)) for layers in (None, RKD))
    assert command("teach", "--deepspeed_config", logits)[0] == 0
    assert train.main(["--deepspeed_config", str(states)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "are logits alone, and road.distill.layers compares states; run `python -m road_ds teach" in said
    code, out, _ = command("teach", "--deepspeed_config", states)
    assert code == 0 and "made anew, it was from another choice of states beside the logits" in out
    shard = next((tmp_path / "targets").rglob("00000.arrow"))
    written = shard.stat().st_mtime_ns
    assert command("teach", "--deepspeed_config", logits)[0] == 0 and shard.stat().st_mtime_ns == written


def test_layers_first_predictions_after(teachers, config_file, tmp_path, capsys):
    """TinyBERT's two runs: the first moves the encoder and leaves the heads; the second begins where it ended."""
    config = layers_config(teachers, {"method": "tinybert"}, objective="layers")
    for key in ("temperature", "weight"):
        del config["road"]["distill"][key]
    config["road"]["use"], config["road"]["distill"]["teachers"] = (
        ["inference"],
        {"inference": [f"{teachers[0]}/inference"]},
    )
    config["road"]["steps"] = 15
    path = config_file(config, "layers")
    assert train.main(["--deepspeed_config", str(path)]) == 0
    assert "road.padding is grouped, not free: attention scores are compared" in capsys.readouterr().out
    lines = [line for line in records(tmp_path / "layers") if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx([line["layers/inference"] for line in lines])
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    config, _ = load_config(path)
    fresh = build_model(config.model, heads(config), load_tokenizer(config.model), dropout=0.0, seed=config.seed)
    trained = load_file(tmp_path / "layers" / "model" / "inference" / "model.safetensors")
    before = fresh.head_model("inference", fresh.state_dict()).state_dict()
    moved = {name: not torch.equal(trained[name], value) for name, value in before.items()}
    assert not any(moved[name] for name in moved if name.startswith("classifier"))
    assert all(moved[name] for name in moved if ".query.weight" in name or "word_embeddings" in name)

    after = layers_config(teachers, None)
    after["road"]["distill"]["teachers"] = {"inference": [f"{teachers[0]}/inference"]}
    after["road"] |= {"model": str(tmp_path / "layers"), "use": ["inference"], "steps": 2}
    assert train.main(["--deepspeed_config", str(config_file(after, "predictions"))]) == 0


@pytest.mark.parametrize(
    ("layers", "teacher", "said"),
    [
        ({"method": "pkd", "map": [[1, 9]]}, {}, "road.distill.layers.map: got [1, 9]; expected [layer of the student, layer of"),
        ({"method": "tinybert"}, {"num_attention_heads": 8}, "the student has 4 heads, the teacher 8"),
        ({"method": "pkd"}, {"hidden_size": 64}, "the teachers must have one depth and width (and number of heads), got 5 layers"),
    ],
)  # fmt: skip
def test_layers_that_do_not_suit_are_one_error(teachers, layers, teacher, said, config_file, tmp_path, capsys):
    """Before anything is written."""
    config = layers_config(teachers, layers)
    other = tmp_path / "other"
    shutil.copytree(f"{teachers[0]}/inference", other)
    if teacher:
        spec = ModelSpec(
            architecture="electra", tokenizer="sample:tokenizer",
            config={**TINY_ELECTRA, "hidden_size": WIDTH, "num_hidden_layers": DEPTH, **teacher},
        )  # fmt: skip
        tasks = {"inference": heads(load_config(config_file(tiny_config(), "any"))[0])["inference"]}
        tokenizer = load_tokenizer(spec)
        model = build_model(spec, tasks, tokenizer, dropout=0.0, seed=1)
        shutil.rmtree(other)
        export(model, model.state_dict(), tokenizer, tmp_path / "made")
        shutil.move(tmp_path / "made" / "inference", other)
    named = [str(other)] if layers["method"] != "pkd" or not teacher else [str(other), f"{teachers[0]}/inference"]
    config["road"]["use"], config["road"]["distill"]["teachers"] = ["inference"], {"inference": named}
    capsys.readouterr()
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run" / "metrics.jsonl").exists()


def test_scores_of_a_compiled_encoder_are_refused(teachers, config_file, capsys):
    config = layers_config(teachers, {"method": "tinybert"})
    config["road"] |= {"compile": True, "use": ["inference"]}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    assert "does not show the attention scores that road.distill.layers compares" in capsys.readouterr().err
