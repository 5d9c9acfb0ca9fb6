"""Distillation through the real launcher: teach, then train, against a plain PyTorch loop that knows nothing of either."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import launch, records, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from road_ds import train
from road_ds.config.file import load_config
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.teachers import weights_hash
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.tasks.registry import heads

KINDS = {"qa": AutoModelForQuestionAnswering, "inference": AutoModelForSequenceClassification}
TEMPERATURE, WEIGHT = 3.0, 0.7


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, cache) -> list[str]:
    """Three runs, of seeds and steps that make them differ: teachers."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed in range(3):
        config = tiny_config(seed=seed + 1, steps=3, cache=str(cache), output=str(folder / f"seed-{seed}"))
        path = folder / f"seed-{seed}.json"
        path.write_text(json.dumps(config))
        assert train.main(["--deepspeed_config", str(path)]) == 0
    return [str(folder / f"seed-{seed}") for seed in range(3)]


def distill_config(teachers: list[str], folder: Path, **distill) -> dict:
    """Three teachers for one data set, two for another, none for two."""
    settings = {
        "objective": "weighted_kd",
        "temperature": TEMPERATURE,
        "weight": WEIGHT,
        "wrong_scale": 0.75,
        "dtype": "float32",
        "cache": str(folder / "targets"),
        "teachers": {"inference": teachers, "places": [teachers[1], teachers[2] + "/model/qa"]},
        **distill,
    }
    return tiny_config(distill=settings)


@pytest.fixture(scope="module")
def taught(teachers, tmp_path_factory, cache) -> Path:
    """A folder whose soft targets two processes have written; the run's JSON lies in it."""
    folder = tmp_path_factory.mktemp("taught")
    config = distill_config(teachers, folder)
    config["road"] |= {"cache": str(cache), "output": str(folder / "run")}
    (folder / "run.json").write_text(json.dumps(config))
    result = launch("--module", "road_ds", "teach", "--deepspeed_config", folder / "run.json", ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "places: teachers right on a row: 0: " in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("inference: teachers right on a row")]
    some = re.search(r" 1: ([\d.]+)%, 2: ([\d.]+)%", line)
    assert some and float(some[1]) + float(some[2]) > 10, f"teachers that agree prove nothing of Algorithm 2: {line}"
    return folder


@pytest.fixture(scope="module")
def plain(taught, teachers):
    """The weights and losses of a plain loop with teachers: everything row by row."""
    config, _ = load_config(taught / "run.json")
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train
    passes, steps = plan(config, 24, {name: source.lengths for name, source in rows.items()})
    initial = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=config.seed)
    export(initial, initial.state_dict(), tokenizer, taught / "initial")
    load = {**KINDS, "paraphrase": AutoModelForSequenceClassification}
    models = {head: kind.from_pretrained(taught / "initial" / head) for head, kind in load.items()}
    for model in models.values():
        model.electra = models["qa"].electra
        model.train()
    asked = {
        "inference": [KINDS["inference"].from_pretrained(f"{t}/model/inference").eval() for t in teachers],
        "places": [KINDS["qa"].from_pretrained(f"{t}/model/qa").eval() for t in teachers[1:]],
    }

    def logits_of(model, feature):
        output = model(
            input_ids=torch.tensor([feature.input_ids.tolist()]),
            token_type_ids=torch.tensor([feature.token_type_ids.tolist()]),
        )
        if hasattr(output, "start_logits"):
            return torch.stack([output.start_logits[0], output.end_logits[0]])
        return output.logits

    def loss_of(name: str, row: int) -> torch.Tensor:
        feature = rows[name][row]
        labels = torch.tensor([int(label) for label in feature.labels])
        logits = logits_of(models[config.head_of(name)], feature)
        hard = F.cross_entropy(logits, labels)
        if name not in asked:
            return hard
        with torch.no_grad():
            theirs = [logits_of(model, feature) for model in asked[name]]
        right = [bool((t.argmax(1) == labels).all()) for t in theirs]
        count, wrong = len(theirs), right.count(False)
        weight = {True: (count - wrong * 0.75) / max(1, count - wrong), False: 0.75}
        scale = [1.0] * count if wrong == count else [weight[r] for r in right]
        target = sum(s * t for s, t in zip(scale, theirs, strict=True)) / count / TEMPERATURE
        soft = F.kl_div((logits / TEMPERATURE).log_softmax(1), target.softmax(1), reduction="batchmean")
        return (1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * soft

    parameters = list({id(p): p for model in models.values() for p in model.parameters()}.values())
    losses = []
    for step in range(steps):
        total = sum(
            torch.stack([loss_of(taken.dataset, row) for row in taken.rows]).mean() / config.passes
            for taken in passes.draw(step)
        )
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        clip = min(1.0, 1.0 / (float(norm) + 1e-6))  # to the default norm of 1
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= 0.1 * clip * gradient
        losses.append(total.item())
    weights = {name: {k: v.detach() for k, v in model.state_dict().items()} for name, model in models.items()}
    drawn = {taken.dataset for step in range(steps) for taken in passes.draw(step)}
    assert drawn == {"places", "people", "inference", "paraphrase"}, "the comparison wants all kinds of data sets"
    return weights, losses


def compare(folder: Path, plain, tolerance: float = 1e-6) -> None:
    weights, losses = plain
    lines = [line for line in records(folder) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=10 * tolerance)
    for head, expected in weights.items():
        found = load_file(folder / "model" / head / "model.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error < tolerance, f"{head} {name}: off by {error:.2g}"


@pytest.mark.parametrize(("stage", "ranks", "micro"), [
    (0, 1, 8), (1, 1, 2), (2, 1, 4), (3, 1, 2), (0, 2, 2), (1, 2, 4), (2, 2, 2), (3, 2, 2),
])  # fmt: skip
def test_kd_inside_mtl_equals_a_plain_loop(plain, taught, teachers, config_file, tmp_path, stage, ranks, micro):
    config = distill_config(teachers, taught)
    config["zero_optimization"] = {"stage": stage}
    if stage == 3:  # by default parameters this small are never let go
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    config["train_micro_batch_size_per_gpu"] = micro
    path = config_file(config)
    if ranks == 1 and stage < 3:  # in this process: the engine is the same, the start of another is saved
        assert train.main(["--deepspeed_config", str(path)]) == 0
    else:
        result = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=ranks)
        assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain)
    line = next(line for line in records(tmp_path / "run") if "soft/places" in line)
    assert line["loss/places"] == pytest.approx(
        (1 - WEIGHT) * line["hard/places"] + WEIGHT * TEMPERATURE**2 * line["soft/places"], rel=1e-5
    )


@pytest.mark.parametrize("source", ["cached", "online"])
def test_joined_micro_batches_learn_from_teachers_as_a_plain_loop_does(
    plain, taught, teachers, config_file, tmp_path, source
):
    config = distill_config(teachers, taught, source=source)
    config["train_micro_batch_size_per_gpu"] = 2
    config["road"]["join_micro_batches"] = True
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    compare(tmp_path / "run", plain)


@pytest.mark.parametrize(("distill", "tolerance"), [
    ({"source": "online"}, 1e-6), ({"dtype": "float16"}, 2e-4),
], ids=["online", "float16"])  # fmt: skip
def test_online_and_half_precision_teachers_give_the_same_trajectory(
    plain, taught, teachers, config_file, tmp_path, distill, tolerance
):
    config = distill_config(teachers, tmp_path, **distill)
    path = config_file(config)
    if "dtype" in distill:
        assert run_forked("-m", "road_ds", "teach", "--deepspeed_config", path).returncode == 0
    assert train.main(["--deepspeed_config", str(path)]) == 0
    compare(tmp_path / "run", plain, tolerance)


def test_measuring_cosines_changes_nothing(config_file, tmp_path):
    """Dropout on, ZeRO 2 on two ranks: weights and losses are those of a run that does not measure, to the bit."""
    for every in (0, 2):
        config = tiny_config(dropout=0.1, gradient_cosine_every=every, output=str(tmp_path / f"every-{every}"))
        config["zero_optimization"] = {"stage": 2}
        result = run_forked("road_ds/train.py", "--deepspeed_config", config_file(config), ranks=2)
        assert result.returncode == 0, result.stderr[-3000:]
    off, on = (records(tmp_path / f"every-{every}") for every in (0, 2))
    assert [line.get("loss") for line in off] == [line.get("loss") for line in on]
    states = [load_file(tmp_path / f"every-{every}" / "model" / "qa" / "model.safetensors") for every in (0, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    measured = [{k: v for k, v in line.items() if k.startswith("cosine/")} for line in on if "loss" in line]
    assert [bool(values) for values in measured] == [False, True, False, True, False]
    assert all(-1 <= value <= 1 for values in measured for value in values.values())


def test_cosines_are_those_of_the_gradients(config_file, tmp_path, cache):
    """Against each pass's gradient of a model of its own, one rank."""
    path = config_file(tiny_config(gradient_cosine_every=1, steps=1))
    assert train.main(["--deepspeed_config", str(path)]) == 0
    line = records(tmp_path / "run")[0]
    config, _ = load_config(path)
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train
    passes, _ = plan(config, 24, {name: source.lengths for name, source in rows.items()})
    model = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=config.seed).train()
    from road_ds.data.batch import collate
    from road_ds.distillation.objective import supervised

    gradients = []
    drawn = passes.draw(0)
    for taken in drawn:
        model.zero_grad()
        batch = collate(rows[taken.dataset], taken.rows, tokenizer.pad_token_id)
        supervised(model(batch, config.head_of(taken.dataset)), batch.labels).total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.encoder.parameters() if p.grad is not None]))
    pairs = {"cosine/" + "~".join(sorted((a.dataset, b.dataset))) for a in drawn for b in drawn if a is not b}
    assert {key for key in line if key.startswith("cosine/")} == pairs
    first, second = gradients[0], gradients[1]
    key = "cosine/" + "~".join(sorted((drawn[0].dataset, drawn[1].dataset)))
    assert line[key] == pytest.approx(F.cosine_similarity(first, second, dim=0).item(), abs=1e-4)


# What a training run says of soft targets that do not suit.


@pytest.fixture
def copy(taught, teachers, config_file, tmp_path):
    """A copy of the soft targets, its configuration, and what a run says of it."""
    shutil.copytree(taught / "targets", tmp_path / "targets")
    config = distill_config(teachers, tmp_path)
    place = sorted((tmp_path / "targets" / "places").iterdir())[0]

    def run(**changes) -> str:
        for key, value in changes.items():
            block = config["road"]
            *parents, last = key.split("__")
            for parent in parents:
                block = block[parent]
            block[last] = value
        import contextlib
        import io

        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = train.main(["--deepspeed_config", str(config_file(config)), "--overwrite"])
        assert code == (2 if "error:" in said.getvalue() else 0), said.getvalue()
        return said.getvalue()

    return place, run


def test_sound_soft_targets_are_taken(copy):
    assert "error" not in copy[1]()


def test_rows_that_changed_are_refused(copy):
    said = copy[1](datasets__places__max_rows=59)
    assert "made from another rows" in said and "teach" in said


def test_another_length_is_refused(copy):
    said = copy[1](tasks__qa__max_length=112)
    assert "lengths" in said and "'max_length': 128" in said and "'max_length': 112" in said


def test_another_tokenizer_is_refused(copy, teachers, tmp_path):
    """A teacher for spans must cut text into the student's tokens."""
    teacher = tmp_path / "teacher"
    shutil.copytree(teachers[0] + "/model/qa", teacher)
    text = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (teacher / "tokenizer.json").write_text(json.dumps(text))
    said = copy[1](distill__teachers={"places": [str(teacher)]})
    assert "another tokenizer than the student" in said


def test_a_teacher_that_changed_is_refused(copy, teachers, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    shutil.copytree(teachers[1] + "/model/inference", teacher)
    _place, run = copy
    names = {"inference": [str(teacher)]}
    assert "are not there" in run(distill__teachers=names)
    path = tmp_path / "run.json"
    assert run_forked("-m", "road_ds", "teach", "--deepspeed_config", path).returncode == 0
    assert "error" not in run(distill__teachers=names, save_every=3)
    shutil.copy(teachers[2] + "/model/inference/model.safetensors", teacher / "model.safetensors")
    assert "another teacher (its weights" in run(distill__teachers=names)
    result = run_forked("-m", "road_ds", "teach", "--deepspeed_config", path)
    assert result.returncode == 0 and "made anew, it was from another teacher" in result.stdout
    assert train.main(["--deepspeed_config", str(path), "--resume"]) == 2
    assert "teachers.inference" in capsys.readouterr().err, "half a run with one teacher, half with another"
    assert "error" not in run(distill__teachers=names)
    (used,) = json.loads((tmp_path / "run" / "results.json").read_text())["teachers"]["inference"]
    assert used == weights_hash(teacher)


def test_label_orders_are_matched_by_name(copy, taught, plain, tmp_path):
    """A student whose labels stand in another order: the same losses from the same soft targets."""
    _place, run = copy
    student = str(taught / "initial" / "inference")  # its head is put in the order asked for, by name
    weights = {"places": 0, "people": 0, "inference": 1, "paraphrase": 0}
    assert "error" not in run(model=student, steps=3, sampling={"weights": weights})
    before = [line["loss"] for line in records(tmp_path / "run") if "loss" in line]
    from road_ds.distillation.soft_targets import Origin, SoftTargets

    folder = sorted((tmp_path / "targets" / "inference").iterdir())[0]
    origin = Origin(**json.loads((folder / "manifest.json").read_text())["origin"])
    permuted = Origin(**{**vars(origin), "labels": ["neutral", "contradiction", "entailment"]})
    plainly, other = SoftTargets(folder, origin, "t")[5], SoftTargets(folder, permuted, "t")[5]
    assert other.tolist() == [plainly[1], plainly[2], plainly[0]]
    assert "error" not in run(tasks__inference__labels=["neutral", "contradiction", "entailment"])
    after = [line["loss"] for line in records(tmp_path / "run") if "loss" in line]
    assert len(after) == 3 and after == pytest.approx(before, rel=1e-5)
    assert "error" not in run(distill__source="online")
    assert [line["loss"] for line in records(tmp_path / "run") if "loss" in line] == pytest.approx(before, rel=1e-5)
    said = run(
        tasks__inference__labels=["neutral", "contradiction", "yes"],
        datasets__inference__label_map={"entailment": "yes"},
    )
    assert "they must have the same names" in said


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 8), "bytes, expected"),
        (lambda path: flip(path), "has changed since it was saved (sha256 differs)"),
        (lambda path: path.unlink(), "00000.arrow: is missing"),
    ],
    ids=["truncated", "flipped", "deleted"],
)
def test_damaged_soft_targets_are_named(copy, fault, said):
    place, run = copy
    fault(place / "00000.arrow")
    found = run()
    assert said in found and "00000.arrow" in found and "teach" in found


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_unfinished_soft_targets_are_refused_and_go_on(copy, tmp_path):
    """Interrupted before its manifest: training refuses, teach goes on and writes only what is missing."""
    place, run = copy
    (place / "manifest.json").unlink()
    assert "are not finished" in run()
    shard = place / "00000.arrow"
    before = shard.stat().st_mtime_ns
    assert run_forked("-m", "road_ds", "teach", "--deepspeed_config", tmp_path / "run.json").returncode == 0
    assert shard.stat().st_mtime_ns == before and "error" not in run()
    flip(shard)
    (place / "manifest.json").unlink()
    assert run_forked("-m", "road_ds", "teach", "--deepspeed_config", tmp_path / "run.json").returncode == 0
    assert shard.stat().st_mtime_ns != before and "error" not in run()
    os.truncate(shard, 100)
    result = run_forked("-m", "road_ds", "teach", "--deepspeed_config", tmp_path / "run.json")
    assert result.returncode == 0 and "00000.arrow: has 100 bytes, expected" in result.stderr
    assert "error" not in run(), "what is damaged under a manifest is made again too"


def test_a_manifest_that_lacks_a_shard_is_damaged(copy, tmp_path):
    """Training says so and asks for `teach`, which makes it again."""
    place, run = copy
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "manifest.json").write_text(json.dumps(manifest | {"files": {}}, indent=2) + "\n")
    assert "manifest.json: has changed since it was saved (sha256 differs); run `python -m road_ds teach" in run()
    result = run_forked("-m", "road_ds", "teach", "--deepspeed_config", tmp_path / "run.json")
    assert (
        result.returncode == 0
        and "manifest.json: has changed since it was saved (sha256 differs): made again" in result.stderr
    )
    assert json.loads((place / "manifest.json").read_text()) == manifest and "error" not in run()


def test_a_place_that_cannot_be_written_is_named(copy, tmp_path):
    _place, run = copy
    (tmp_path / "file").touch()
    run(distill__cache=str(tmp_path / "file"))
    result = run_forked("-m", "road_ds", "teach", "--deepspeed_config", tmp_path / "run.json")
    assert result.returncode == 2 and "cannot be written: Not a directory: free space, or set road" in result.stderr


def test_a_teacher_of_another_task_is_refused(copy, teachers):
    said = copy[1](distill__teachers={"inference": [teachers[0] + "/model/qa"]})
    assert "is a teacher of span_qa, the data set's task is classification" in said


def test_a_run_that_lacks_the_head_is_refused(copy, teachers, tmp_path):
    shutil.copytree(teachers[0], tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher" / "model" / "inference")
    said = copy[1](distill__teachers={"inference": [str(tmp_path / "teacher")]})
    assert "the run has no model for the head infe" in said and "model/paraphrase" in said and "model/qa" in said


def test_teach_without_teachers(config_file):
    result = run_forked("-m", "road_ds", "teach", "--deepspeed_config", config_file(tiny_config()))
    assert result.returncode == 2 and "names no teachers" in result.stderr


def test_logits_that_are_not_finite_are_not_stored(tmp_path):
    from road_ds.common.errors import RoadError
    from road_ds.distillation.soft_targets import Origin, begin, finish, write_shard

    origin = Origin("places", "t", "r", 2, "k", {}, None, "float16")
    begin(tmp_path / "t", origin)
    fine, scores = np.ones(3), np.ones(2)
    for bad, said in ((np.array([1, np.nan, 2]), "feature 1 are not finite"), (np.array([1, 1e6, 2]), "float32")):
        with pytest.raises(RoadError, match=said):
            write_shard(tmp_path / "t", 0, [fine, bad], scores, origin)
        assert not list((tmp_path / "t").glob("*.arrow"))
    write_shard(tmp_path / "t", 0, [fine, fine], scores, origin)
    finish(tmp_path / "t", origin, "t")


def test_logits_that_are_not_finite_are_refused_on_reading(tmp_path, monkeypatch):
    from road_ds.common.errors import RoadError
    from road_ds.distillation import soft_targets

    origin = soft_targets.Origin("places", "t", "r", 2, "k", {}, None, "float32")
    soft_targets.begin(tmp_path / "t", origin)
    monkeypatch.setattr(soft_targets.np, "isfinite", lambda values: np.ones(np.shape(values), bool))
    soft_targets.write_shard(tmp_path / "t", 0, [np.ones(3), np.array([1, np.inf, 2])], np.ones(2), origin)
    soft_targets.finish(tmp_path / "t", origin, "t")
    monkeypatch.undo()
    with pytest.raises(RoadError, match="a logit is not finite"):
        soft_targets.SoftTargets(tmp_path / "t", origin, "t")


def test_many_shards_hold_every_row(tmp_path, monkeypatch):
    """Rows of unequal length over several files, read back one by one."""
    from road_ds.distillation import soft_targets

    monkeypatch.setattr(soft_targets, "SHARD", 2 * soft_targets.CHUNK)
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=generator.integers(1, 9)).astype(np.float32) for _ in range(5300)]
    origin = soft_targets.Origin("places", "t", "r", len(rows), "k", {}, None, "float32")
    soft_targets.begin(tmp_path / "t", origin)
    shards = soft_targets.shard_rows(origin)
    assert [len(shard) for shard in shards] == [2000, 2000, 1300]
    for number, shard in enumerate(shards):
        soft_targets.write_shard(tmp_path / "t", number, [rows[i] for i in shard], np.zeros(len(shard)), origin)
    soft_targets.finish(tmp_path / "t", origin, "t")
    found = soft_targets.SoftTargets(tmp_path / "t", origin, "t")
    assert all(np.array_equal(found[i], rows[i]) for i in range(len(rows)))


def test_cosines_are_refused_under_zero_3(config_file, capsys):
    config = tiny_config(gradient_cosine_every=1)
    config["zero_optimization"] = {"stage": 3}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    assert "gradient_cosine_every: not under ZeRO 3" in capsys.readouterr().err


def test_a_teacher_with_another_tokenizer_teaches_classes(teachers, config_file, tmp_path, capsys):
    """Each reads the rows in its own way: soft targets are those of the teacher reading its own tokens."""
    from road_ds.config.file import load_config
    from road_ds.data.sources import read_part
    from road_ds.models.predictor import Predictor

    teacher = tmp_path / "teacher"
    shutil.copytree(teachers[1] + "/model/inference", teacher)
    text = json.loads((teacher / "tokenizer.json").read_text())
    words = text["model"]["vocab"]
    a, b = [word for word in words if word.isalpha() and len(word) > 3][:2]
    words[a], words[b] = words[b], words[a]
    (teacher / "tokenizer.json").write_text(json.dumps(text))
    names = {"inference": [str(teacher)]}
    settings = {"objective": "kd", "dtype": "float32", "cache": str(tmp_path / "targets"), "teachers": names}
    path = config_file(tiny_config(distill=settings))
    result = run_forked("-m", "road_ds", "teach", "--deepspeed_config", path)
    assert result.returncode == 0, result.stderr
    config, _ = load_config(path)
    examples = read_part("inference", "train", config.datasets["inference"]).examples
    _, wanted = Predictor.load(str(teacher)).logits(examples, 64)
    from road_ds.distillation.soft_targets import Origin, SoftTargets

    (folder,) = (tmp_path / "targets" / "inference").iterdir()
    origin = Origin(**json.loads((folder / "manifest.json").read_text())["origin"])
    found = SoftTargets(folder, origin, "t")
    assert all(np.allclose(found[i], wanted[i][0], atol=1e-5) for i in range(len(examples)))
    assert train.main(["--deepspeed_config", str(path)]) == 0
    assert train.main(["--deepspeed_config", str(path), "--overwrite", "--set", "road.distill.source=online"]) == 2
    assert "cannot read its batches" in capsys.readouterr().err


def test_check_names_the_teachers_and_refuses_what_training_would(teachers, config_file, capsys):
    from road_ds.__main__ import main

    settings = {"objective": "weighted_kd", "teachers": {"places": teachers}}
    assert main(["check", str(config_file(tiny_config(distill=settings)))]) == 0
    assert "weighted_kd: 3 teachers of places" in capsys.readouterr().out
    settings["teachers"] = {"place": ["a"]}
    assert main(["check", str(config_file(tiny_config(distill=settings)))]) == 2
    assert "did you mean 'places'" in capsys.readouterr().err
