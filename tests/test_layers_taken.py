"""A student that begins with some of a teacher's layers computes what the teacher without the others computes."""

import json

import pytest
import torch
from runs import error_of, tiny_config
from safetensors.torch import load_file
from test_export import ARCHITECTURES, SMALL, TASKS
from torch import nn
from transformers import AutoConfig, AutoModel

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.config.road import ModelSpec
from road_ds.config.settings import validated
from road_ds.engine.optim import parameter_groups
from road_ds.engine.plan import parameters
from road_ds.models.build import build_model
from road_ds.models.configuration import base_config, load_tokenizer
from road_ds.models.export import export

DEEP = {"num_hidden_layers": 5}
CONV = {"conv_kernel_size": 3, "conv_act": "gelu"}
KINDS = {
    "bert": SMALL,
    "roberta": ARCHITECTURES["roberta"],
    "electra": ARCHITECTURES["electra"],
    "deberta": {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {**ARCHITECTURES["deberta-v2"], **CONV},
}
TASKS_HERE = {name: TASKS[name] for name in ("qa", "nli")}


def teacher(folder, architecture: str, settings=None):
    """An exported model of five layers with a head of each kind; its folder."""
    spec = ModelSpec(
        architecture=architecture, tokenizer="sample:tokenizer", config={**(settings or KINDS[architecture]), **DEEP}
    )
    tokenizer = load_tokenizer(spec)
    model = build_model(spec, TASKS_HERE, tokenizer, dropout=0.1, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    export(model, model.state_dict(), tokenizer, folder)
    return folder / "nli"


def student(name, layers, **config):
    spec = validated(ModelSpec, {"name": str(name), "layers": layers, **config}, "road.model")
    return build_model(spec, TASKS_HERE, load_tokenizer(spec), dropout=None, seed=2).eval()


def by_hand(name, layers):
    """transformers' own encoder of the folder, with the other layers taken out."""
    encoder = AutoModel.from_pretrained(name).eval()
    encoder.encoder.layer = nn.ModuleList(encoder.encoder.layer[i] for i in layers)
    return encoder


def said_of(model):
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        return model(ids, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("architecture", KINDS)
def test_the_student_is_the_teacher_without_the_other_layers(architecture, tmp_path):
    name = teacher(tmp_path / "teacher", architecture)
    model = student(name, [0, 2, 3])
    expected, found = said_of(by_hand(name, [0, 2, 3])), said_of(model.encoder)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    if getattr(expected, "pooler_output", None) is not None and architecture == "bert":
        assert torch.equal(found.pooler_output, expected.pooler_output)
    assert not torch.allclose(
        expected.last_hidden_state, said_of(by_hand(name, [0, 1, 2])).last_hidden_state, atol=0.01
    )

    export(model, model.state_dict(), load_tokenizer(ModelSpec(name=str(name))), tmp_path / "student")
    again = AutoModel.from_pretrained(tmp_path / "student" / "nli").eval()
    assert AutoConfig.from_pretrained(tmp_path / "student" / "nli").num_hidden_layers == 3 == len(again.encoder.layer)
    assert torch.equal(said_of(again).last_hidden_state, found.last_hidden_state)
    kept = load_file(tmp_path / "student" / "nli" / "model.safetensors")
    whole = load_file(name / "model.safetensors")
    assert {key: value.shape for key, value in kept.items()}.keys() < whole.keys()
    heads = [key for key in kept if key.startswith("classifier")]
    assert heads and all(torch.equal(kept[key], whole[key]) for key in heads), "the teacher's head of the task stays"


@pytest.mark.parametrize(("number", "layers"), [(1, [0]), (2, [0, 2]), (3, [0, 1, 3]), (5, [0, 1, 2, 3, 4])])
def test_a_number_is_spread_evenly(number, layers, tmp_path):
    name = teacher(tmp_path, "electra")
    one, other = (said_of(student(name, given).encoder).last_hidden_state for given in (number, layers))
    assert torch.equal(one, other)


def test_rates_and_the_plan_follow_the_students_depth(tmp_path):
    name = teacher(tmp_path, "electra")
    model, spec = student(name, [1, 4]), ModelSpec(name=str(name), layers=[1, 4])
    planned, _ = parameters(base_config(spec, load_tokenizer(spec), None), TASKS_HERE)
    assert planned == sum(p.numel() for p in model.encoder.parameters())
    rates = {
        id(p): g["lr"] for g in parameter_groups(model, lr=1.0, weight_decay=0, layer_lr_decay=0.5) for p in g["params"]
    }
    found = {name: rates[id(p)] for name, p in model.named_parameters()}
    assert {rate for name, rate in found.items() if ".layer.1." in name} == {0.25}, "the top layer"
    assert found["encoder.embeddings.word_embeddings.weight"] == 0.5**4


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 5], "road.model.layers: got [0, 5]; {name} has 5 layers, 0 to 4"),
        (6, "road.model.layers: got 6; {name} has 5 layers, 0 to 4"),
        ([2, 0], "road.model: layers: got [2, 0]; expected different layers in rising order"),
        ([1, 1], "expected different layers in rising order"),
        ([], "road.model.layers: got []"),
        (0, "road.model.layers"),
        ([-1], "road.model.layers"),
    ],
)
def test_layers_that_are_not_there(layers, said, tmp_path):
    name = teacher(tmp_path, "electra")
    with pytest.raises(RoadError) as error:
        student(name, layers)
    assert said.format(name=name) in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("albert", "(albert) cannot be taken one by one: all depths share them; that works for bert, roberta"),
        ("modernbert", "(modernbert) cannot be taken one by one; that works for bert, roberta"),
    ],
)
def test_layers_that_cannot_be_taken_apart(architecture, said, tmp_path):
    name = teacher(tmp_path, architecture, ARCHITECTURES[architecture])
    with pytest.raises(RoadError) as error:
        student(name, [0, 2])
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"architecture": "electra", "tokenizer": "sample:tokenizer", "layers": 2}, "taken from a pretrained model"),
        ({"name": "x", "layers": 2, "config": {"num_hidden_layers": 3}}, "leave config.num_hidden_layers out"),
    ],
)
def test_two_depths(more, said):
    with pytest.raises(RoadError, match=said):
        validated(ModelSpec, more, "road.model")


def test_a_run_trains_and_exports_the_students_layers(tmp_path, config_file, command):
    """From the command line."""
    name = teacher(tmp_path / "teacher", "electra")
    path = config_file(tiny_config(model={"name": str(name), "layers": 3}, use=["inference"], steps=2, save_every=1))
    assert command("check", path)[0] == 0
    assert train.main(["--deepspeed_config", str(path)]) == 0
    exported = AutoConfig.from_pretrained(tmp_path / "run" / "model" / "inference")
    assert exported.num_hidden_layers == 3
    assert json.loads((tmp_path / "run" / "config.json").read_text())["road"]["model"]["layers"] == 3
    assert command("export", tmp_path / "run", "--output", tmp_path / "again")[0] == 0
    one, other = (load_file(tmp_path / f / "inference" / "model.safetensors") for f in ("run/model", "again"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    wrong = config_file(tiny_config(model={"name": str(name), "layers": [5]}, use=["inference"]), "wrong")
    assert f"road.model.layers: got [5]; {name} has 5 layers, 0 to 4" in error_of(command("check", wrong))
