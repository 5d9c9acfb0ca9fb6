"""Damaged, unreadable and odd model folders end in one message that names the file, whichever command meets them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import ROOT, TINY_ELECTRA, error_of, tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ElectraConfig, ElectraForSequenceClassification

from road_ds.common.errors import RoadError
from road_ds.common.hub import model_folder, sample_path
from road_ds.config.road import ModelSpec
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.multi_task import MultiTaskModel
from road_ds.models.predictor import Predictor
from road_ds.tasks.registry import task_from

TASK = task_from({"type": "classification", "labels": ["no", "yes"], "max_length": 32}, "t")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    model = ElectraForSequenceClassification(ElectraConfig(**TINY_ELECTRA, vocab_size=len(tokenizer), **names))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def build(name: str) -> MultiTaskModel:
    spec = ModelSpec(name=name)
    return build_model(spec, {"t": TASK}, load_tokenizer(spec), dropout=None, seed=0)


USES = {"train": build, "predict": Predictor.load}


def test_a_whole_folder_is_used(folder):
    built, loaded = build(str(folder)), Predictor.load(str(folder))
    weights = load_file(folder / "model.safetensors")
    kept = loaded.model.state_dict()
    assert weights.keys() <= kept.keys() and all(torch.equal(kept[name], value) for name, value in weights.items())
    own = {name.partition(".")[2]: value for name, value in weights.items()}
    found = {name: value for name, value in built.encoder.state_dict().items() if name in own}
    assert found and all(torch.equal(value, own[name]) for name, value in found.items())


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"a":' * 100_000, "\xff"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(folder, file, content, use):
    (folder / file).write_text(content, encoding="latin-1")
    with pytest.raises(RoadError) as error:
        USES[use](str(folder))
    assert file in str(error.value) and str(folder) in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_named(folder, file, use):
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(RoadError) as error:
        USES[use](str(folder))
    assert file in str(error.value)


ODD = [
    {"hidden_size": "32"}, {"hidden_size": 0}, {"num_attention_heads": 0}, {"vocab_size": None}, {"vocab_size": -5},
    {"id2label": [1]}, {"id2label": {"a": "b"}}, {"architectures": 5}, {"model_type": []}, {"model_type": None},
    {"dtype": "nope"}, {"hidden_act": "nope"}, {"max_position_embeddings": "x"}, {"num_labels": "x"},
]  # fmt: skip


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("change", ODD, ids=str)
def test_odd_settings_of_a_folder_are_one_message(folder, change, use):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RoadError):
        USES[use](str(folder))


@pytest.mark.parametrize(
    "config",
    [
        {"hidden_size": "32"}, {"hidden_size": -1}, {"num_hidden_layers": None}, {"num_attention_heads": 0},
        {"vocab_size": "x"}, {"layer_norm_eps": []}, {"hidden_dropout_prob": {}}, {"dtype": [1]}, {"dtype": 1e308},
        {"id2label": 5}, {"architectures": 5}, {"pad_token_id": 5000}, {"hidden_act": 5}, {"initializer_range": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_odd_settings_of_fresh_weights_are_one_message(config):
    spec = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config=TINY_ELECTRA | config)
    with pytest.raises(RoadError, match=r"road\.model"):
        build_model(spec, {"t": TASK}, load_tokenizer(spec), dropout=0.1, seed=0)


def test_check_refuses_settings_that_give_no_model(command, config_file):
    config = tiny_config(use=["inference"])
    config["road"]["model"]["config"] = TINY_ELECTRA | {"num_attention_heads": 0}
    said = error_of(command("check", config_file(config)))
    assert "road.model: electra with these settings gives no model for classification" in said


@pytest.mark.parametrize("use", USES)
def test_weights_of_another_shape_are_named(folder, use):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(
        RoadError, match=r"another shape than config.json says, the first is .*dense.*: \[64.*expected \[128"
    ):
        USES[use](str(folder))


def test_a_head_without_weights_predicts_nothing(folder):
    """The library would draw them at random and say so in its log alone."""
    state = load_file(folder / "model.safetensors")
    save_file({key: v for key, v in state.items() if not key.startswith("classifier")}, folder / "model.safetensors")
    with pytest.raises(
        RoadError, match=r"4 weights of ElectraForSequenceClassification are missing, the first is classifier"
    ):
        Predictor.load(str(folder))


def test_a_damaged_head_of_a_run_is_named(folder, tmp_path):
    for head in ("a", "t"):
        shutil.copytree(folder, tmp_path / "run" / "model" / head)
    (tmp_path / "run" / "model" / "t" / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(RoadError, match=r"t/model.safetensors: the weights cannot be read"):
        build(str(tmp_path / "run"))


@pytest.mark.parametrize("name", ["a\0b", "sample:a\0b", "~nobody-of-this-name/x", "x" * 5000, "sample:" + "x" * 5000])
def test_a_name_that_no_folder_can_have(name):
    with pytest.raises(RoadError):
        model_folder(name)


def test_a_home_that_nobody_has_is_named_wherever_a_path_is_given(config_file, command):
    file, gone = config_file(tiny_config()), "~nobody-of-this-name/x"
    model, data = "sample:tokenizer", "sample:inference.dev.jsonl"
    recipe = ROOT / "ds_configs" / "recipes" / "road.json"
    distill = {"objective": "kd", "teachers": {"places": [gone]}}
    for arguments in (
        *(
            ("check", file, "--set", f"road.{key}={gone}")
            for key in ("output", "cache", "model", "datasets.places.train")
        ),
        ("check", file, "--set", f"road.distill={json.dumps(distill)}"),
        ("evaluate", model, "--data", data, "--output", gone),
        ("evaluate", model, "--data", gone),
        ("evaluate", gone, "--glue"),
        ("predict", gone, "--text", "a"),
        ("export", gone),
        ("compare", gone),
        ("recipe", recipe, "--output", gone),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and "nobody-of-this-name" in err and "Traceback" not in err, arguments


def test_loaded_weights_are_those_of_the_file(folder):
    state = load_file(folder / "model.safetensors")
    found = Predictor.load(str(folder)).model.state_dict()
    assert state.keys() <= found.keys() and all(torch.equal(found[key], value) for key, value in state.items())
