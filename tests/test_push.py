"""push: exported folders to a stand-in hub on loopback, through the real client."""

import json

import pytest
from huggingface_hub import constants
from runs import error_of
from stand_in_hub import READER, serve
from test_export import TASKS, fresh

from road_ds.models.export import export
from road_ds.models.predictor import Predictor

TOKEN = "hf_a_secret_of_the_users"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two heads that share an encoder."""
    folder = tmp_path_factory.mktemp("run") / "model"
    model, tokenizer = fresh("electra", {name: TASKS[name] for name in ("nli", "rating")})
    export(model, model.state_dict(), tokenizer, folder, shared=True)
    return folder


def test_a_head_arrives_whole_and_the_token_nowhere(models, tmp_path, command, monkeypatch):
    hub = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no login"))
    with serve(hub) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for more in (["--private"], []):
            assert command("push", models / "nli", "org/mine", *more) == (0, f"{url}/org/mine\n", "")
        for token, said in (
            ("", "not logged in, or by a token that is not known: `hf auth login` (HF_TOKEN)"),
            (READER, "this login may not write there: give a token that may, or another name"),
        ):
            monkeypatch.setenv("HF_TOKEN", token)
            assert error_of(command("push", models / "nli", "org/other")) == f"error: org/other: {said}"
    there = hub / "models" / "org" / "mine"
    assert json.loads((there / ".asked").read_text())["visibility"] == "private"
    assert {path.name for path in there.iterdir()} - {".asked"} == {
        *("README.md", "config.json", "model.safetensors", "road_files.json", "road_task.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    assert (there / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")
    pushed, own = (Predictor.load(str(folder)).model.state_dict() for folder in (there, models / "nli"))
    assert pushed.keys() == own.keys() and all((pushed[key] == own[key]).all() for key in own)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "mine: whose? expected ORG/NAME, with your own name for ORG where it is yours"),
        ("org/a--b", "'org/a--b': no hub name: expected ORG/NAME of letters, digits, - _ ."),
        ("https://hub/org/a", "'https://hub/org/a': no hub name: expected ORG/NAME of letters, digits, - _ ."),
        ("../a", "'../a': no hub name: expected ORG/NAME of letters, digits, - _ ."),
    ],
)
def test_names_are_looked_at_before_anything_is_sent(models, command, name, message):
    assert error_of(command("push", models / "nli", name)) == f"error: {message}"


def test_only_what_was_exported_is_pushed(models, command, tmp_path):
    run = models.parent
    said = error_of(command("push", run, "org/mine"))
    assert said == f"error: {run}: the run has several models: name one of {models / 'nli'}, {models / 'rating'}"
    said = error_of(command("push", tmp_path, "org/mine"))
    assert said == f"error: {tmp_path}: no exported model (road_task.json is missing): give runs/<name>/model/<task>"
    (models / "encoder" / "model.safetensors").rename(models / "encoder" / "gone")
    said = error_of(command("push", models / "nli", "org/mine"))
    (models / "encoder" / "gone").rename(models / "encoder" / "model.safetensors")
    assert "encoder/model.safetensors: the weights cannot be read: No such file" in said
