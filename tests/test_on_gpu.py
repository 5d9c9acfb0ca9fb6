"""The script for a GPU and the tuner in it: rehearsed on a CPU, every part, with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_bench import load as load

from road_ds.models.configuration import base_config

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def on_gpu(*arguments, **environment):
    command = ["bash", str(BENCHMARKS / "on_gpu.sh"), *map(str, arguments)]
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_kernels_parts_run_and_leave_their_results(tmp_path):
    """The others are rehearsed by hand: `benchmarks/on_gpu.sh --rehearse --only train,tests,runs,steps,base`, minutes."""
    run = on_gpu("--rehearse", "--only", "kernels,tiles,loss,combine", "--output", tmp_path)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr
    summary = (tmp_path / "summary.md").read_text()
    parts = [line.split(" | ") for line in summary.splitlines()[2:]]
    assert [part[0].strip("| ") for part in parts] == ["kernels", "loss", "combine", "tiles"]
    assert all(part[1] == "ok" for part in parts) and summary in run.stdout
    rows = json.loads((tmp_path / "bench_kd_loss.json").read_text())["rows"]
    assert {row["provider"] for row in rows} >= {"eager", "ours", "head 16 products", "head 16 ours"}
    assert json.loads((tmp_path / "bench_combine.json").read_text())["rows"]
    tried = json.loads((tmp_path / "tune_kernels.json").read_text())
    assert all(row["us"] for row in tried["rows"])
    assert json.loads((tmp_path / "tiles.json").read_text())["rehearsal"] == tried["best"]


def test_a_part_that_fails_or_takes_too_long_does_not_end_the_others(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        '#!/bin/sh\ncase "$*" in "-m pytest"*) exit 3;; *tune_kernels*) exit 124;; *) echo done;; esac\n'
    )
    stand_in.chmod(0o755)
    run = on_gpu("--rehearse", "--only", "tests,tiles,combine", "--output", tmp_path / "out", PYTHON=str(stand_in))
    assert run.returncode == 1
    results = [line.split(" | ")[:2] for line in (tmp_path / "out/summary.md").read_text().splitlines()[2:]]
    assert results == [["| tests", "failed, 3"], ["| combine", "ok"], ["| tiles", "over 280 s"]]


def test_parts_for_which_no_time_is_left_are_named(tmp_path):
    run = on_gpu("--only", "tests,tiles", "--seconds", "5", "--output", tmp_path / "out", PYTHON="false")
    assert run.returncode == 1
    rows = (tmp_path / "out/summary.md").read_text().splitlines()[2:]
    assert rows == ["| tests | no time left | | |", "| tiles | no time left | | |"]


@pytest.fixture
def benchmark(load):
    for name in ("measure", "length_mix", "presets", "providers"):
        load(name)
    return load("bench_step")


def test_gaps_by_hand(benchmark):
    """Spans in any order, one inside another, two that touch."""
    spans = [(30, 40, "c"), (0, 10, "a"), (2, 5, "inside"), (10, 20, "b"), (1540, 1541, "d"), (1591, 1600, "e")]
    spans = [benchmark.Span(*span) for span in spans]
    assert benchmark.gaps(spans) == [(10, "b", "c"), (1500, "c", "d"), (50, "d", "e")]
    found = benchmark.idle(spans)
    assert found["launches"] == 6 and found["longest gaps"] == [[1.5, "c", "d"], [0.05, "d", "e"], [0.01, "b", "c"]]
    kinds = {key: value for key, value in found.items() if key.startswith("idle")}
    assert kinds == {
        "idle ms in gaps under 20 us": 0.01,
        "idle ms in gaps under 1 ms": 0.05,
        "idle ms in gaps of more": 1.5,
    }


def test_every_preset_has_a_model(benchmark, load):
    """Of its sizes, and a tokenizer that goes with them; no weights."""
    presets = load("presets")
    for name, preset in presets.PRESETS.items():
        config = presets.bench_config(preset)
        settings = base_config(config.model, presets.tokenizer_of(config), 0.1)
        assert settings.vocab_size == preset.config["vocab_size"], name


def test_an_unknown_argument_is_refused():
    run = on_gpu("--quick")
    assert run.returncode == 2 and "--quick is not" in run.stderr


@pytest.fixture
def tuner(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import tune_kernels
    from road_kernels import plan

    monkeypatch.setattr(plan, "measured", plan.measured)  # which the tuner exchanges
    return tune_kernels


def test_a_tile_that_computes_something_else_is_left_out(tuner, monkeypatch):
    """Nothing is launched, so that every output is what memory held."""
    monkeypatch.setattr(tuner.launch, "start", lambda *args, **options: None)
    rows = tuner.sweep({"hundreds": [(3, 72, 1)]}, torch.device("cpu"), 60, 1)
    assert len(rows) == 3 and all(row["note"].startswith("off by") for row in rows) and tuner.best(rows) == {}


def test_the_table_keeps_what_was_not_measured(tuner, tmp_path):
    table = tmp_path / "tiles.json"
    tuner.write(table, "9.0", {"stream": {"hundreds": [1, 32, 4, 64], "thousands": [2, 128, 4, 128]}})
    tuner.write(table, "8.0", {"stream": {"hundreds": [2, 32, 2, 128]}})
    tuner.write(table, "9.0", {"stream": {"hundreds": [2, 32, 4, 128]}, "gradient": {"hundreds": [8, 4, 128]}})
    written = json.loads(table.read_text())
    assert written["9.0"]["stream"] == {"hundreds": [2, 32, 4, 128], "thousands": [2, 128, 4, 128]}
    assert set(written) == {"8.0", "9.0"} and written["9.0"]["gradient"] == {"hundreds": [8, 4, 128]}


def test_candidates_are_tiles(tuner):
    """Powers of two, whole warps, and the present tile among them."""
    from road_kernels import plan

    for regime in plan.REGIMES:
        found = list(tuner.candidates(regime))
        assert len(set(found)) > 12
        for kernel, _, numbers in found:
            assert len(numbers) == (3 if kernel == "gradient" else 4)
            assert all(number & (number - 1) == 0 for number in numbers[:-1]) and 32 <= numbers[-1] <= 128
