"""The mean of several models' logits, models matched by what they say and not by where it stands."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import TINY_ELECTRA, error_of, tiny_config
from safetensors.torch import load_file, save_file

from road_ds.common.errors import RoadError
from road_ds.common.hub import model_folder
from road_ds.config.file import load_config
from road_ds.config.road import ModelSpec
from road_ds.data.sources import read_part
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.ensemble import Ensemble
from road_ds.models.export import export
from road_ds.models.predictor import Predictor
from road_ds.tasks.registry import task_from

LABELS = ["entailment", "neutral", "contradiction"]
QA = {"type": "span_qa", "max_length": 128, "doc_stride": 80, "max_question_length": 32}
NLI = {"type": "classification", "labels": LABELS}
SPEC = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config=TINY_ELECTRA)


def made(folder, seed: int, **tasks) -> str:
    """A run folder with a model of random weights for each task."""
    tasks = {name: task_from(settings, name) for name, settings in tasks.items()}
    tokenizer = load_tokenizer(SPEC)
    model = build_model(SPEC, tasks, tokenizer, dropout=0.0, seed=seed)
    export(model, model.state_dict(), tokenizer, folder / "model")
    return str(folder)


@pytest.fixture
def config(config_file):
    return config_file(tiny_config())


@pytest.fixture
def rows(config):
    """The dev rows of the tiny run."""
    datasets = load_config(config)[0].datasets
    return {name: read_part(name, "dev", spec).examples for name, spec in datasets.items()}


@pytest.mark.parametrize(("head", "dataset"), [("nli", "inference"), ("qa", "people"), ("rating", "inference")])
def test_the_average_is_the_one_by_hand(tmp_path, rows, head, dataset):
    tasks = {"nli": NLI, "qa": QA, "rating": {"type": "regression"}}
    runs = [made(tmp_path / str(seed), seed, **tasks) for seed in range(3)]
    examples = [replace(example, label="1") if head == "rating" else example for example in rows[dataset][:20]]
    features, found = Ensemble.of(runs, head).logits(examples)
    alone = [Predictor.load(f"{run}/model/{head}").logits(examples) for run in runs]
    assert [list(f.input_ids) for f in features] == [list(f.input_ids) for f in alone[0][0]]
    for i, value in enumerate(found):
        assert np.abs(alone[0][1][i] - alone[1][1][i]).max() > 1e-3  # they do differ
        np.testing.assert_allclose(value, (alone[0][1][i] + alone[1][1][i] + alone[2][1][i]) / 3, atol=1e-6)


def test_one_model_is_itself(tmp_path, rows):
    run = made(tmp_path, 1, nli=NLI)
    _, found = Ensemble.of([run]).logits(rows["inference"])
    np.testing.assert_array_equal(found, Predictor.load(run).logits(rows["inference"])[1])


def test_labels_are_matched_by_name(tmp_path, rows):
    """A model and the same model with its labels in another order are together the model alone."""
    one = made(tmp_path / "one", 1, nli=NLI)
    order = [2, 0, 1]
    settings = {"type": "classification", "labels": [LABELS[i] for i in order]}
    two = made(tmp_path / "two", 1, nli=settings)
    for key in ("weight", "bias"):  # the same head, its rows in the other order
        left, right = (load_file(f"{run}/model/nli/model.safetensors") for run in (one, two))
        assert torch.equal(left[f"classifier.out_proj.{key}"], right[f"classifier.out_proj.{key}"])
    right |= {f"classifier.out_proj.{key}": right[f"classifier.out_proj.{key}"][order] for key in ("weight", "bias")}
    save_file(right, f"{two}/model/nli/model.safetensors", metadata={"format": "pt"})
    examples = rows["inference"][:20]
    _, alone = Ensemble.of([one]).logits(examples)
    np.testing.assert_allclose(Ensemble.of([one, two]).logits(examples)[1], alone, atol=1e-6)
    scores = [Ensemble.of(pair).evaluate(examples).scores for pair in ([one], [one, two], [two, one])]
    assert scores[0] == pytest.approx(scores[1]) and scores[0] == pytest.approx(scores[2])


def test_models_that_do_not_go_together_are_refused(tmp_path):
    one = made(tmp_path / "one", 1, nli=NLI, qa=QA)
    other = made(tmp_path / "other", 2, nli={**NLI, "labels": ["yes", "no", "maybe"]}, qa={**QA, "doc_stride": 60})
    with pytest.raises(RoadError, match="one is given twice: the mean is over different models"):
        Ensemble.of([str(tmp_path / name) for name in ("one", "other", "one")])
    with pytest.raises(RoadError, match=r"other tells apart \['yes', 'no', 'maybe'\], .*one \['entailment'"):
        Ensemble.of([one, other], "nli")
    with pytest.raises(RoadError, match=r"other cuts contexts with doc_stride 60, .*one with 80"):
        Ensemble.of([one, other], "qa")
    with pytest.raises(RoadError, match=r"qa is a model for span_qa, .*nli one for classification"):
        Ensemble.of([f"{one}/model/nli", f"{one}/model/qa"])
    with pytest.raises(RoadError, match=r"one: the run has several models: name one of .*model/nli, .*model/qa"):
        Ensemble.of([one])
    with pytest.raises(RoadError, match="the run has several models"):
        Predictor.load(one)


def test_spans_of_another_tokenizer_are_refused(tmp_path, rows):
    one, other = (made(tmp_path / name, 1, qa=QA) for name in ("one", "other"))
    file = tmp_path / "other" / "model" / "qa" / "tokenizer.json"
    changed = json.loads(file.read_text())
    words = changed["model"]["vocab"]
    a, b = [word for word in words if word.isalpha() and len(word) > 3][:2]
    words[a], words[b] = words[b], words[a]
    file.write_text(json.dumps(changed))
    with pytest.raises(RoadError, match=r"other.*has another tokenizer than .*one.*: for spans"):
        Ensemble.of([one, other]).logits(rows["people"][:4])


def test_evaluate_scores_the_dev_parts_of_a_run(tmp_path, config, command):
    runs = [made(tmp_path / str(seed), seed, inference=NLI, qa=QA) for seed in (1, 2)]
    use = ["--set", 'road.use=["people", "inference"]']
    code, out, err = command("evaluate", *runs, "--config", config, *use, "--json", "--output", tmp_path / "both")
    assert code == 0, err
    printed, written = json.loads(out), json.loads((tmp_path / "both" / "results.json").read_text())
    assert printed == written["scores"] and list(printed) == ["people", "inference"] and written["models"] == runs
    lines = (tmp_path / "both" / "predictions" / "inference.jsonl").read_text().splitlines()
    scores = [json.loads(line)["score"] for line in lines]
    assert 100 * np.mean(scores) == pytest.approx(printed["inference"]["scores"]["accuracy"]) and len(scores) == 60
    code, out, _ = command("evaluate", *runs, "--config", config, *use)
    assert code == 0 and [line.split()[0] for line in out.strip().splitlines()[2:]] == ["people", "inference"]
    wrong = made(tmp_path / "wrong", 1, inference=QA)
    one = ["--set", 'road.use=["inference"]']
    assert "wrong is a model for span_qa, datasets.inference one for classification" in error_of(
        command("evaluate", wrong, "--config", config, *one)
    )
    assert "holds a run or a model" in error_of(
        command("evaluate", wrong, "--config", config, "--output", f"{wrong}/model/inference")
    )


def test_a_run_starts_from_each_head_of_another(tmp_path):
    """As a model, a run folder gives its encoder and every head of the same name."""
    first = made(tmp_path, 1, nli=NLI, qa=QA)
    tasks = {"qa": task_from(QA, "qa"), "nli": task_from(NLI, "nli"), "more": task_from({"type": "regression"}, "more")}
    spec = ModelSpec(name=first)
    model = build_model(spec, tasks, load_tokenizer(spec), dropout=0.0, seed=5)
    assert model_folder(first).name == "nli"
    for head in ("nli", "qa"):
        again = model.head_model(head, model.state_dict()).state_dict()
        kept = load_file(f"{first}/model/{head}/model.safetensors")
        assert all(torch.equal(again[key], kept[key]) for key in kept)
