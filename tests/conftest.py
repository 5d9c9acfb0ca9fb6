"""What tests share: one feature cache, and configurations written to files."""

import atexit
import gc
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from runs import ROOT
from sketch import drawn, sketched

from road_ds.engine import curves

torch.set_num_threads(1)  # the models are tiny, and other processes of a test want the cores
gc.disable()  # while the files of tests import what stays to the end
atexit.register(gc.unfreeze)

# Files of a minute and more begin first, else one of them ends alone.
LONG = ["test_interpreter", "test_recipe", "test_resume", "test_bench_train", "test_distill", "test_gradients"]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_collection_finish():
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def spared():
    """What most runs are spared in this process: the drawing of their curves, and a search for cycles in all libraries.

    The latter is a third of a second of each run, for what `pytest_collection_finish` has done; here is the loop's own.
    """
    from road_ds import loop

    whole = loop.standing_objects_spared
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "standing_objects_spared", nullcontext)
        patched.setattr(curves, "_write", sketched)
        yield whole


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """One feature cache for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Documents of the sample's vocabulary, of uneven length."""
    data = json.loads((ROOT / "road_ds" / "data" / "sample_data" / "places.train.json").read_text())["data"]
    found = [paragraph["context"] for entry in data for paragraph in entry["paragraphs"]][:80]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t[: 60 + 17 * (i % 9)]}) + "\n" for i, t in enumerate(found)))
    return path


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """Draws a run's curves where that is marked as the point."""
    if request.node.get_closest_marker("drawn"):
        monkeypatch.setattr(curves, "_write", drawn)


@pytest.fixture
def config_file(tmp_path, cache):
    """Writes a configuration whose run folder is tmp_path/run, and returns its path."""

    def write(config: dict, name: str = "run") -> Path:
        config["road"].setdefault("output", str(tmp_path / name))
        config["road"].setdefault("cache", str(cache))
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def command(capsys):
    """Exit code, standard output and standard error of a command, in this process."""

    from road_ds.__main__ import main

    def command(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([*map(str, arguments)])
        except SystemExit as stop:  # argparse
            code = int(str(stop.code))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command
