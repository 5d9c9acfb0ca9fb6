"""Class weights: against hand computations, and the same on any number of micro-batches and processes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import records, tiny_config
from safetensors.torch import load_file
from sklearn.utils.class_weight import compute_class_weight
from test_objectives import FLOAT, batch_of, ce, classes, distill, rows_of

from road_ds import load, train
from road_ds.common.errors import RoadError
from road_ds.common.hub import SAMPLE
from road_ds.config.file import load_config
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.objective import Objective, gradient_share
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.registry import heads, task_from

LABELS = ["entailment", "neutral", "contradiction"]
WEIGHTS = {"entailment": 0.5, "neutral": 4.0, "contradiction": 1.25}
OBJECTIVES = {
    "supervised": (Objective(), 1.0),
    "kd": (distill(objective="kd", teachers={"places": ["a", "b", "c"]}, weight=0.7, temperature=3.0), 0.3),
    "weighted_kd": (distill(objective="weighted_kd", teachers={"places": ["a", "b", "c"]}, weight=0.9), 0.1),
    "teacher_annealing": (distill(objective="teacher_annealing", teachers={"places": ["a", "b", "c"]}), 0.25),
    "teacher_free": (distill(objective="teacher_free", weight=0.4), 0.6),
    "label_smoothing": (distill(objective="label_smoothing", smoothing=0.2), 0.8),
    "annealing_kd": (distill(objective="annealing_kd", teachers={"places": ["a", "b", "c"]}), 0.0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_count_by_their_weights_and_teachers_as_before(name):
    """The total is the one without weights, its hard part exchanged: sum of w CE over the number of rows, at progress 1/4."""
    objective, share = OBJECTIVES[name]
    outputs, teaching, labels = classes()
    weights = torch.tensor([0.5, 4.0, 1.25, 0.0])[labels]
    entropies = [
        float(ce(torch.nn.functional.one_hot(torch.tensor(label), len(own)).double(), own.detach()))
        for own, _, label in rows_of(outputs, teaching, labels)
    ]
    plain = objective(outputs, teaching, batch_of(labels), 0.25)
    weighed = objective(replace(outputs, weights=weights), teaching, batch_of(labels), 0.25)
    hard = np.mean([w * e for w, e in zip(weights.tolist(), entropies, strict=True)])
    assert float(weighed.hard) == pytest.approx(hard, **FLOAT)
    assert float((weighed.total - plain.total).detach()) == pytest.approx(share * (hard - np.mean(entropies)), **FLOAT)
    if plain.soft is not None:
        assert torch.equal(weighed.soft, plain.soft)
    if share == 0.3:
        one = torch.ones(len(labels))
        shares = [gradient_share(objective, replace(outputs, weights=w), teaching, batch_of(labels), 0.25) for w in (one, 100 * one)]  # fmt: skip
        assert shares[1] < 0.1 < shares[0], "the teachers' share knows of the weights"


def task(**settings):
    return task_from({"type": "classification", "labels": LABELS, **settings}, "road.tasks.inference")


def test_balanced_weights_are_scikit_learns():
    counts = {"entailment": 7, "neutral": 90, "contradiction": 23}
    numbers = dict(enumerate(counts.values()))
    found = task(class_weights="balanced").counting(lambda: numbers).class_weights
    rows = [label for label, count in counts.items() for _ in range(count)]
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=np.array(rows))
    assert [found[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(counts[label] * found[label] for label in LABELS) == pytest.approx(120, abs=1e-3)  # their mean is 1
    some = task(class_weights="balanced").counting(lambda: {0: 3, 1: 1, 2: 0})
    assert some.class_weights == {"entailment": 0.666667, "neutral": 2.0, "contradiction": 1.0}
    assert task(class_weights=WEIGHTS).counting(lambda: numbers).class_weights == WEIGHTS
    assert task().counting(lambda: numbers).class_weights is None
    assert task(class_weights="balanced").encoding() == task().encoding(), "features do not depend on them"


def test_a_row_without_a_label_has_any_weight():
    batch = SimpleNamespace(labels=torch.tensor([1, -100, 2]))
    weights = torch.tensor([WEIGHTS[label] for label in LABELS])
    assert weights[batch.labels.clamp(min=0)].tolist() == [4.0, 0.5, 1.25]
    outputs = Outputs(classes(rows=3, width=3)[0].logits.detach())
    loss = Objective()(replace(outputs, weights=weights[[1, 0, 2]]), None, batch_of(batch.labels), 0.0)
    logits = outputs.logits.log_softmax(-1)
    assert float(loss.total) == pytest.approx(float(-(4 * logits[0, 1] + 1.25 * logits[2, 2]) / 2), **FLOAT)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"entailment": 1.0, "neutral": 2.0},
            'class_weights: got .* expected "balanced", or a number for each of entail',
        ),
        ({**WEIGHTS, "other": 1.0}, "expected .* a number for each of entailment, neutral, contradiction"),
        (dict.fromkeys(LABELS, 0.0), "not all 0"),
        ({**WEIGHTS, "neutral": -1.0}, r"road\.tasks\.inference\.class_weights\.neutral: got -1\.0"),
        ("balance", r"road\.tasks\.inference\.class_weights: got 'balance'; input should be 'balanced'"),
        ([1.0, 2.0, 3.0], r"road\.tasks\.inference\.class_weights: got \["),
    ],
)
def test_weights_that_do_not_hold(given, message):
    with pytest.raises(RoadError, match=message):
        task(class_weights=given)


def weighing(tmp_path, cache, name: str, **settings) -> dict:
    config = tiny_config(output=str(tmp_path / name), cache=str(cache), use=["inference", "places"], steps=3, passes=2)
    config["road"]["tasks"]["inference"] |= settings
    return config | {"train_batch_size": 16}


def test_a_run_goes_by_them_on_any_number_of_micro_batches_and_processes(tmp_path, cache, capsys):
    """Balanced on rows of uneven classes: micro-batches of 8 and of 1, one process and two; and not what it is without."""
    file = {}
    for name, settings in (("weighed", {"class_weights": "balanced"}), ("plain", {})):
        file[name] = tmp_path / f"{name}.json"
        config = weighing(tmp_path, cache, name, **settings)
        config["road"]["datasets"]["inference"]["max_rows"] = 50
        file[name].write_text(json.dumps(config))
    road = {name: train(path, train_micro_batch_size_per_gpu=8) for name, path in file.items()}
    assert "filled in: road.tasks.inference.class_weights = {'entailment': " in capsys.readouterr().out
    train(file["weighed"], output=tmp_path / "ones", train_micro_batch_size_per_gpu=1)
    two = run_forked("road_ds/train.py", "--deepspeed_config", file["weighed"], "--set", f"road.output={tmp_path}/two",
                     "--set", "train_micro_batch_size_per_gpu=2", ranks=2)  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    whole, without = (load_file(road[name].models["inference"] / "model.safetensors") for name in ("weighed", "plain"))
    for other in ("ones", "two"):
        found = load_file(tmp_path / other / "model" / "inference" / "model.safetensors")
        assert all(torch.allclose(found[key], whole[key], rtol=1e-4, atol=2e-6) for key in whole), other
    assert not all(torch.allclose(without[key], whole[key], rtol=1e-4, atol=2e-6) for key in whole)
    saved = json.loads((road["weighed"].models["inference"] / "road_task.json").read_text())["class_weights"]
    rows = [json.loads(line)["label"] for line in (SAMPLE / "inference.train.jsonl").read_text().splitlines()[:50]]
    assert saved == {label: round(50 / (3 * rows.count(label)), 6) for label in LABELS}


def test_the_first_loss_is_the_one_by_hand(tmp_path, cache):
    """With a rate of almost nothing the exported model is the one that computed the loss of step 1."""
    config = weighing(tmp_path, cache, "run", class_weights=WEIGHTS)
    config["road"] |= {"use": ["inference"], "steps": 1, "passes": 1}
    run = train(config, **{"optimizer.params.lr": 1e-30})
    settings, _ = load_config(run.folder / "config.json")
    rows = Rows.load(settings.datasets, heads(settings).by_dataset(), load_tokenizer(settings.model), cache).train[
        "inference"
    ]
    passes, _ = plan(settings, 16, {"inference": rows.lengths})
    examples = [rows.example(int(row)) for row in passes.draw(0)[0].rows]
    _, logits = load(run.models["inference"]).predictor.logits(examples)
    losses = [-float(torch.tensor(values[0]).log_softmax(-1)[LABELS.index(e.label)]) for e, values in zip(examples, logits, strict=True)]  # fmt: skip
    by_hand = sum(WEIGHTS[e.label] * loss for e, loss in zip(examples, losses, strict=True)) / len(examples)
    assert records(run.folder)[0]["loss"] == pytest.approx(by_hand, rel=1e-5)
    assert by_hand != pytest.approx(sum(losses) / len(losses), rel=0.05)
