"""FreeLB: ascent on word embeddings against loops of its own, by hand on a small function and through whole runs."""

import hashlib
import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import error_of, records, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from road_ds import train
from road_ds.config.file import load_config
from road_ds.config.road import FreeLBSettings
from road_ds.data.batch import Batch
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.freelb import FreeLB
from road_ds.distillation.objective import Loss, Objective, supervised
from road_ds.engine import checkpoint, settled
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.tasks.registry import heads

WIDTH, SEED, STEP = 5, 7, 11
LENGTHS = (4, 1, 6)
SETTINGS = {"steps": 3, "step_size": 0.3, "init_magnitude": 0.2, "max_norm": 0.4}


def noise(step: int, dataset: str, row: int, *shape: int, seed: int = SEED) -> torch.Tensor:
    """Numbers from -1 to 1, by the rule that a run's must follow."""
    name = f"freelb/{seed}/{step}/{dataset}/{row}"
    generator = torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))
    return torch.empty(shape).uniform_(-1, 1, generator=generator)


def batch_of(rows=(20, 21, 22), width: int = 8) -> Batch:
    lengths = [LENGTHS[row - 20] for row in rows]
    ids = torch.ones(len(rows), width, dtype=torch.long)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    labels = torch.zeros(len(rows))
    return Batch("d", np.array(rows), ids, mask, ids, torch.tensor(lengths), labels, tokens=tuple(lengths))


def freelb(**settings) -> FreeLB:
    return FreeLB(FreeLBSettings(**{**SETTINGS, **settings}), WIDTH, SEED)


def loss_at(row: int, at: torch.Tensor) -> torch.Tensor:
    """A function of a row's point whose gradient differs from place to place; at: [tokens, width]."""
    slopes = torch.arange(at.numel(), dtype=at.dtype).view_as(at).sin()
    return (slopes * at + (row - 19) * at.sin().square()).sum()


def by_hand(row: int, length: int, *, steps: int, step_size: float, init_magnitude: float, max_norm: float, norm: str):
    """The points of a row's ascent, in float64, number by number."""
    side = init_magnitude / math.sqrt(length * WIDTH) if norm == "l2" else init_magnitude
    point = [side * value for value in noise(STEP, "d", row, length, WIDTH).double().flatten().tolist()]

    def size(values):
        return math.sqrt(sum(v * v for v in values)) if norm == "l2" else max(abs(v) for v in values)

    def inside(values):
        if max_norm and norm == "l2":
            return [v * min(1.0, max_norm / max(size(values), 1e-9)) for v in values]
        return [max(-max_norm, min(max_norm, v)) for v in values] if max_norm else values

    points = [inside(point)]
    for _ in range(steps - 1):
        at = torch.tensor(points[-1]).double().view(length, WIDTH).requires_grad_()
        slope = torch.autograd.grad(loss_at(row, at), at)[0].flatten().tolist()
        moved = [v + step_size * g / size(slope) for v, g in zip(points[-1], slope, strict=True)]
        points.append(inside(moved))
    return points


@pytest.mark.parametrize("options", [
    {}, {"norm": "linf"}, {"max_norm": 0.0}, {"max_norm": 0.0, "norm": "linf"}, {"steps": 5}, {"step_size": 0.02},
    {"init_magnitude": 0.0}, {"init_magnitude": 1.0, "norm": "linf"},
], ids=str)  # fmt: skip
def test_the_views_are_the_points_of_an_ascent_by_hand(options):
    batch = batch_of()
    wanted = {"norm": "l2", **SETTINGS, **options}
    expected = {row: by_hand(row, length, **wanted) for row, length in zip((20, 21, 22), LENGTHS, strict=True)}
    seen = 0
    for number, view in enumerate(freelb(**options)(batch, STEP)):
        for i, (row, length) in enumerate(zip((20, 21, 22), LENGTHS, strict=True)):
            assert view.added[i, :length].flatten().tolist() == pytest.approx(expected[row][number], abs=2e-6)
            assert not view.added[i, length:].any(), "padding is not moved"
        # 2^16: a loss scale changes nothing
        if view.added.requires_grad:
            parts = [
                loss_at(row, view.added[i, :n]) for i, (row, n) in enumerate(zip((20, 21, 22), LENGTHS, strict=True))
            ]
            (2.0**16 * sum(parts) + view.added[:, -1].sum()).backward()
        seen += 1
    assert seen == wanted["steps"]
    moved = np.abs(np.array(expected[22][-1]) - np.array(expected[22][0])).max()
    assert moved > 0.01, "the ascent goes somewhere"


def test_where_a_row_begins_depends_on_seed_step_and_row_alone():
    whole = freelb().begin(batch_of(), STEP)
    alone = freelb().begin(batch_of((22, 20), width=16), STEP)
    assert torch.equal(alone[0, :6], whole[2, :6]) and torch.equal(alone[1, :4], whole[0, :4])
    others = [freelb().begin(batch_of(), STEP + 1), replace(freelb(), seed=SEED + 1).begin(batch_of(), STEP)]
    others.append(freelb().begin(replace(batch_of(), dataset="e"), STEP))
    assert all((other[0, :4] != whole[0, :4]).all() for other in others)
    assert (whole[0, 0] != whole[1, 0]).all()


def test_a_row_whose_gradient_overflowed_stays_where_it_is():
    views = freelb(max_norm=0.0)(batch_of(), STEP)
    first = next(views).added
    (first[:, 0, 0] * torch.tensor([1.0, torch.inf, 1.0])).sum().backward()
    second = next(views).added
    assert torch.equal(second[1], first[1]) and second.isfinite().all()
    assert float((second[0] - first[0]).detach().norm()) == pytest.approx(SETTINGS["step_size"], rel=1e-4)


def test_all_views_of_a_batch_have_one_dropout_mask():
    torch.manual_seed(0)
    masks = []
    for view in freelb()(batch_of(), STEP):
        masks.append(F.dropout(torch.ones(200), 0.5))
        view.added.sum().backward() if view.added.requires_grad else None
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], F.dropout(torch.ones(200), 0.5)), "the next batch has another"


# Whole runs.

WEIGHT, TEMPERATURE = 0.6, 2.0
KINDS = {"qa": AutoModelForQuestionAnswering, "inference": AutoModelForSequenceClassification}


def run_config(teacher: Path, **road) -> dict:
    """Two data sets, one of them with a teacher."""
    distill = {
        "objective": "kd", "source": "online", "temperature": TEMPERATURE, "weight": WEIGHT,
        "teachers": {"inference": [str(teacher)]},
    }  # fmt: skip
    settings = {"use": ["places", "inference"], "passes": 2, "steps": 4, "freelb": SETTINGS, "distill": distill}
    config = tiny_config(**settings | road)
    return config | {"train_batch_size": 16}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, cache):
    """A teacher's folder, and the weights, losses and draws of a plain loop: row by row, own ascent, own clipping."""
    folder = tmp_path_factory.mktemp("plain")
    teacher = folder / "teacher" / "inference"
    path = folder / "plain.json"
    path.write_text(json.dumps(run_config(teacher, cache=str(cache), output=str(folder / "run"))))
    config, ds = load_config(path)
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    for name, seed in (("teacher", 9), ("initial", config.seed)):
        model = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=seed)
        export(model, model.state_dict(), tokenizer, folder / name)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train
    passes, steps = plan(config, ds["train_batch_size"], {name: source.lengths for name, source in rows.items()})
    models = {head: kind.from_pretrained(folder / "initial" / head).train() for head, kind in KINDS.items()}
    models["inference"].electra = models["qa"].electra
    words = models["qa"].electra.embeddings.word_embeddings
    asked = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    parameters = list({id(p): p for model in models.values() for p in model.parameters()}.values())

    def loss_of(name: str, feature, delta: torch.Tensor) -> torch.Tensor:
        ids = torch.tensor([feature.input_ids.tolist()])
        types = torch.tensor([feature.token_type_ids.tolist()])
        output = models[config.head_of(name)](inputs_embeds=words(ids) + delta, token_type_ids=types)
        if name == "places":
            start, end = (torch.tensor([int(label)]) for label in feature.labels)
            return (F.cross_entropy(output.start_logits, start) + F.cross_entropy(output.end_logits, end)) / 2
        hard = F.cross_entropy(output.logits, torch.tensor([int(feature.labels[0])]))
        with torch.no_grad():
            theirs = asked(input_ids=ids, token_type_ids=types).logits  # the teacher reads what was written
        soft = F.kl_div(
            (output.logits / TEMPERATURE).log_softmax(1), (theirs / TEMPERATURE).softmax(1), reduction="batchmean"
        )
        return (1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * soft

    def row_loss(name: str, row: int, step: int) -> torch.Tensor:
        feature = rows[name][row]
        length, width = len(feature.input_ids), words.embedding_dim
        start = noise(step, name, row, length, width, seed=config.seed)
        delta, found = SETTINGS["init_magnitude"] / math.sqrt(length * width) * start, []
        for left in (2, 1, 0):
            delta = delta.detach().requires_grad_()
            found.append(loss_of(name, feature, delta[None]))
            if left:
                (slope,) = torch.autograd.grad(found[-1], delta, retain_graph=True)
                delta = delta + SETTINGS["step_size"] * slope / slope.norm()
                delta = delta * min(1.0, SETTINGS["max_norm"] / float(delta.detach().norm()))
        return sum(found) / 3

    losses = []
    for step in range(steps):
        drawn = passes.draw(step)
        total = sum(torch.stack([row_loss(t.dataset, row, step) for row in t.rows]).mean() / 2 for t in drawn)
        gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
        norm = float(torch.stack([g.norm() for g in gradients]).norm())
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient / max(1.0, norm)
        losses.append(total.item())
    return teacher, {head: {k: v.detach() for k, v in m.state_dict().items()} for head, m in models.items()}, losses


def compare(folder: Path, plain) -> None:
    _, weights, losses = plain
    assert [line["loss"] for line in records(folder) if "loss" in line] == pytest.approx(losses, abs=1e-5)
    for head, expected in weights.items():
        found = load_file(folder / "model" / head / "model.safetensors")
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error < 1e-6, f"{head} {name}: off by {error:.2g}"


def stage(number: int) -> dict:
    """By default parameters this small are never let go under ZeRO 3."""
    return {"stage": number, **({"stage3_param_persistence_threshold": 0} if number == 3 else {})}


def test_a_run_of_padded_rows_equals_a_plain_loop(plain, config_file, tmp_path):
    config = run_config(plain[0], padding="fixed")
    config |= {"zero_optimization": stage(1), "train_micro_batch_size_per_gpu": 8}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    compare(tmp_path / "run", plain)


@pytest.mark.parametrize("zero", range(4))
def test_packed_rows_on_two_ranks_equal_a_plain_loop(plain, config_file, tmp_path, zero):
    config = run_config(plain[0]) | {"zero_optimization": stage(zero)}
    result = run_forked("road_ds/train.py", "--deepspeed_config", config_file(config), ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain)


def test_a_resumed_run_ends_with_the_same_bits(plain, config_file, tmp_path):
    """With dropout and in bf16, whose ZeRO 1 has weights of its own."""
    config = run_config(plain[0], save_every=2, dropout=0.1, precision="bf16", output=str(tmp_path / "whole"))
    config["zero_optimization"] = {"stage": 1}
    path = config_file(config)
    assert train.main(["--deepspeed_config", str(path)]) == 0
    resumed = shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    shutil.rmtree(resumed / "model")
    assert [p.name for p in checkpoint.committed(resumed / "checkpoints")] == ["step-00000002"]
    assert train.main(["--deepspeed_config", str(path), "--set", f"road.output={resumed}", "--resume"]) == 0
    for head in KINDS:
        files = [load_file(tmp_path / run / "model" / head / "model.safetensors") for run in ("whole", "resumed")]
        assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())


class Spoilt(Objective):
    """Hard labels, with a loss that is NaN in one view."""

    at: int

    def __call__(self, outputs, teaching, batch, progress):
        loss = supervised(outputs, batch.labels).total
        return Loss(loss * math.nan if next(COUNT) == self.at else loss)


COUNT = itertools.count()


def test_rows_of_a_bad_view_are_named_and_the_step_skipped(plain, config_file, tmp_path, monkeypatch, capsys):
    config = run_config(plain[0], distill=None)  # 4 micro-batches of 3 views a step, two of each pass
    monkeypatch.setattr(settled, "objective_from", lambda config: Spoilt(at=12 + 7))  # step 2, micro-batch 3
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert [line["applied"] for line in lines] == [True, False, True, True]
    name = lines[1]["datasets"][1]
    assert f"step 2: the loss of {name} is nan on rows" in capsys.readouterr().err


def test_check_counts_the_passes_and_one_step_is_refused(plain, config_file, command):
    path = config_file(run_config(plain[0]))
    code, out, _ = command("check", path)
    assert code == 0 and "freelb: 3 forward and backward passes over each row instead of 1" in out
    said = error_of(command("check", path, "--set", 'road.freelb={"steps": 1}'))
    assert "road.freelb.steps: got 1; input should be greater than or equal to 2" in said
    said = error_of(command("check", path, "--set", "road.freelb.adv_lr=0.1"))
    assert "road.freelb.adv_lr: unknown key" in said
