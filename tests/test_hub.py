"""Models and data sets by hub name, through the real client against a stand-in hub on loopback."""

import json
import subprocess
import sys

import pytest
from runs import ROOT, TINY_ELECTRA, environment, tiny_config
from stand_in_hub import client_environment, serve
from transformers import AutoConfig, AutoModel, AutoTokenizer

from road_ds.common.errors import RoadError
from road_ds.common.hub import model_folder, sample_path

PAIRS = 24
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n  - {split: validation, path: dev.jsonl}\n---\n"
# Several names in one process, as starting one takes longer than all of them; then some without the hub.
CLIENT = """
import json, sys
from huggingface_hub import constants
from road_ds.common.errors import RoadError
from road_ds.common.hub import model_folder
from road_ds.models.configuration import load_tokenizer
from road_ds.config.road import ModelSpec
for endpoint, names in ((constants.ENDPOINT, sys.argv[1]), ("http://127.0.0.1:9", sys.argv[2])):
    constants.ENDPOINT = endpoint
    for name in json.loads(names):
        try:
            print(json.dumps(sorted(path.name for path in model_folder(name).iterdir())))
        except RoadError as error:
            print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """What the hub has: a tiny model, one without safetensors, a gated one, and a data set of pairs."""
    root = tmp_path_factory.mktemp("hub")
    tokenizer = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    for name in ("tiny", "pickled", "closed"):
        folder = root / "models" / "org" / name
        config = AutoConfig.for_model("electra", vocab_size=len(tokenizer), **TINY_ELECTRA)
        AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    (root / "models" / "org" / "closed" / ".gated").touch()
    (root / "models" / "org" / "tiny" / "pytorch_model.bin").write_bytes(b"never fetched")
    pickled = root / "models" / "org" / "pickled"
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    folder = root / "datasets" / "org" / "pairs"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split in ("train", "dev"):
        rows = ({"premise": f"{split} {n}", "hypothesis": "a", "label": "yes" if n % 3 else "no"} for n in range(PAIRS))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def client(repositories, tmp_path_factory):
    """Runs Python with the stand-in hub for a hub."""
    home = tmp_path_factory.mktemp("home")

    def run(*arguments, timeout=200):
        env = environment() | client_environment(served, home)
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)

    with serve(repositories) as served:
        yield run


def config_of_pairs(model: str) -> dict:
    config = tiny_config(
        model=model,
        tasks={"pairs": {"type": "classification", "labels": ["no", "yes"], "max_length": 32}},
        datasets={
            "pairs": {"task": "pairs", "format": "hub", "path": "org/pairs", "train": "train", "dev": "validation"}
        },
        steps=2,
    )
    config["train_batch_size"] = 12
    return config


RUNS = """
import sys
from road_ds.train import main
sys.exit([main(["--deepspeed_config", file]) for file in sys.argv[1:]] != [2, 0])
"""


def test_runs_on_models_and_a_data_set_of_the_hub(client, config_file, tmp_path):
    """One whose model has no safetensors ends before it begins; another one trains."""
    files = [config_file(config_of_pairs(model), model[4:8]) for model in ("org/pickled", "org/tiny@main")]
    done = client("-c", RUNS, *files)
    assert done.returncode == 0, done.stderr
    error = done.stderr[done.stderr.index("error: ") :]
    assert error.startswith("error: org/pickled: no model.safetensors: weights are read as safetensors only; a hub ")
    assert error.count("\n") == 1 and "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "pick").iterdir()} == {".lock", "status.json"}, "no more"
    run = tmp_path / "tiny"
    results = json.loads((run / "results.json").read_text())
    assert results["step"] == 2 and results["scores"]["pairs"]["rows"] == PAIRS
    assert json.loads((run / "config.json").read_text())["road"]["model"]["name"] == "org/tiny@main"
    assert (run / "model" / "pairs" / "model.safetensors").exists()


FOLDER = "or give a folder that holds config.json, the tokenizer and model.safetensors instead of the name"


NAMES = ["org/tiny", "org/none", "org/closed", "org/tiny@v9", "../models", "org/a--b", "a/b/c", "https://hub/x"]


@pytest.fixture(scope="module")
def answers(client) -> list:
    """What the hub has of each name, or why not; then the same of two names where it cannot be reached."""
    done = client("-c", CLIENT, json.dumps(NAMES), json.dumps(["org/tiny", "org/other"]))
    assert done.returncode == 0, done.stderr
    return [*map(json.loads, done.stdout.splitlines())]


def test_what_the_hub_refuses_is_one_clear_error(answers):
    tiny, unknown, gated, revision, *no_names = answers[: len(NAMES)]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(tiny) and "pytorch_model.bin" not in tiny
    assert unknown == (
        "org/none: no such folder and no such model on the hub (or it is private): check the spelling, " + FOLDER
    )
    assert gated == (
        "org/closed: the repository is gated: accept its terms on the hub and log in with `hf auth login`, " + FOLDER
    )
    assert revision == f"org/tiny@v9: the repository has no revision 'v9': leave @v9 out, {FOLDER}"
    for name, error in zip(NAMES[4:], no_names, strict=True):
        assert error == f"{name}: no such folder, and not a hub name (org/name): check the path"


def test_a_hub_that_cannot_be_reached(answers):
    """A name that is in the cache needs no hub; another one is an error at once."""
    known, unknown = answers[len(NAMES) :]
    assert "model.safetensors" in known
    assert unknown == (
        "org/other: no such folder, and the hub cannot be reached and the model is not in its cache: connect, " + FOLDER
    )


def test_a_folder_of_models_names_them(tmp_path):
    for head in ("qa", "nli"):
        (tmp_path / "run" / "model" / head).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            (tmp_path / "run" / "model" / head / file).write_text("{}")
    models = tmp_path / "run" / "model"
    with pytest.raises(RoadError, match=f"; there is a model each in {models}/nli, {models}/qa$"):
        model_folder(str(models))
