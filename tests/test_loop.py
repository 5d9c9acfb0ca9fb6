"""The loop when things go wrong, and what it writes down when they go right."""

import gc
import itertools
import json
import math

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from forked import run_forked
from runs import records, tiny_config
from safetensors.torch import load_file

from road_ds import train
from road_ds.common.errors import RankError, RoadError
from road_ds.common.ranks import Ranks
from road_ds.data.batch import Batch
from road_ds.data.passes import micro_batches
from road_ds.distillation.objective import Loss, Objective, supervised
from road_ds.engine import settled
from road_ds.loop import out_of_memory_named


class Broken(Objective):
    """Hard labels, with a loss that is NaN in the micro-batches (counted from 0) from `first` up to `last`."""

    first: int
    last: int

    def __call__(self, outputs, teaching, batch, progress):
        loss = supervised(outputs, batch.labels).total
        return Loss(loss * math.nan if self.first <= next(COUNT) <= self.last else loss)


COUNT = itertools.count()


def broken(first: int, last: int):
    """In place of `objective_from`: a broken objective, its micro-batches counted from now."""
    global COUNT
    COUNT = itertools.count()
    return lambda config: Broken(first=first, last=last)


@pytest.mark.parametrize("stage", [0, 2])
def test_one_bad_step_is_skipped_and_its_rows_named(stage, config_file, tmp_path, monkeypatch, capsys):
    config = tiny_config(log_every=2)
    config["zero_optimization"] = {"stage": stage}
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    monkeypatch.setattr(settled, "objective_from", broken(7, 7))  # 6 micro-batches a step: the second step
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert [line["applied"] for line in lines] == [True, False, True, True, True]
    assert [line["loss"] is not None for line in lines] == [True, False, True, True, True]
    errors = capsys.readouterr().err
    name = lines[1]["datasets"][0]
    assert f"step 2: the loss of {name} is nan on rows {name}" in errors.replace("-train", "").replace(".train", "")
    weights = load_file(tmp_path / "run" / "model" / "qa" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("stage", [0, 2])
def test_a_diverged_run_says_so(stage, config_file, tmp_path, capsys):
    """Gradients that are not finite from a learning rate, not from a loss: nothing but the message."""
    config = tiny_config(steps=12, max_skipped_steps=3) | {"zero_optimization": {"stage": stage}}
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e18}}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    errors = capsys.readouterr().err
    assert (
        "3 steps in a row were skipped" in errors and "lower the learning rate" in errors and "Traceback" not in errors
    )
    assert {line["applied"] for line in records(tmp_path / "run")} == {True, False}


@pytest.mark.parametrize("stage", [0, 2])
def test_a_run_that_only_skips_is_stopped(stage, config_file, tmp_path, monkeypatch, capsys):
    config = tiny_config(steps=50, max_skipped_steps=3)
    config["zero_optimization"] = {"stage": stage}
    monkeypatch.setattr(settled, "objective_from", broken(12, 10**9))
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    assert "3 steps in a row were skipped" in capsys.readouterr().err
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("failed", 5) and "skipped" in status["reason"]
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.drawn
def test_metrics_tell_what_was_done(config_file, tmp_path, monkeypatch):
    """A line per step; its loss is the mean over passes, its rates and padding follow from the plan."""
    config = tiny_config(steps=7, log_every=3, evaluate_every=4)
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    lines = records(tmp_path / "run")
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "loss" not in line]
    assert [line["step"] for line in steps] == list(range(1, 8)) and [line["step"] for line in evaluations] == [4, 7]
    assert {"places/f1", "inference/accuracy", "paraphrase/accuracy"} <= set(evaluations[0])
    for line in steps:
        by_set = {name: line[f"loss/{name}"] for name in line["datasets"]}
        assert line["loss"] == pytest.approx(sum(by_set[name] for name in line["datasets"]) / 3, rel=1e-6)
        assert line["examples_per_second"] > 0 and line["tokens_per_second"] > line["examples_per_second"]
        assert 0 <= line["padding"] < 1 and line["grad_norm"] > 0 and line["lr"] == 0.1
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["step"] == 7 and results["world_size"] == 1 and results["versions"]["torch"]
    for name, best in results["best"].items():
        values = [line[best["metric"]] for line in evaluations]
        assert best["value"] == max(values) and best["metric"].startswith(name)
        assert results["scores"][name]["scores"][best["metric"].split("/")[1]] == values[-1]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 and page.count("<h3>The worst rows</h3>") == 4
    assert (
        '<p dir="auto">SGD</p>' in page.replace("type SGD · params.lr 0.1", "SGD") and "road.length_window" not in page
    )


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_nothing_in_the_loop_waits_for_the_device(stage, config_file, monkeypatch):
    gc.collect()  # engines of earlier tests wait when they end
    waits = []
    monkeypatch.setattr(type(get_accelerator()), "synchronize", lambda *_: waits.append(1))
    config = tiny_config(steps=5) | {"zero_optimization": {"stage": stage}}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    assert waits == []


def test_a_hang_ends_with_the_stack(tmp_path):
    script = tmp_path / "hang.py"
    script.write_text(
        "import time; from road_ds.loop import watchdog\nwith watchdog(0.5):\n    time.sleep(30)  # hangs here"
    )
    result = run_forked(script, timeout=120)
    assert result.returncode == 1 and "Timeout" in result.stderr and "line 3 in <module>" in result.stderr


def test_out_of_memory_says_what_to_lower():
    read = [Batch("snli", *[torch.zeros(3, 40)] * 6), Batch("mrpc", *[torch.zeros(2, 8)] * 6)]
    with (
        pytest.raises(
            RoadError, match="3 rows x 40 tokens of snli and 2 rows x 8 tokens of mrpc: lower train_micro_batch_size"
        ),
        out_of_memory_named(read),
    ):
        raise torch.cuda.OutOfMemoryError


def test_a_fault_of_one_rank_is_told_by_that_rank(config_file, tmp_path, monkeypatch, capsys):
    """Out of memory on rank 1 reaches the log and status.json, and what it does to rank 0 does not cover it up."""
    one = Ranks(rank=1, world_size=1, local_rank=0, device=torch.device("cpu"), control=None)
    monkeypatch.setattr(train.Ranks, "start", lambda *_: one)
    arguments = ["--deepspeed_config", str(config_file(tiny_config()))]

    def status():
        return json.loads((tmp_path / "run" / "status.json").read_text())

    def out_of_memory(*_, **__):
        raise RankError("the GPU ran out of memory")

    def taken_along(config, ds, ranks, folder, *_, **__):
        folder.status("failed", 3, "the GPU ran out of memory", everywhere=True)  # by the other rank
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train, "run", out_of_memory)
    assert train.main(arguments) == 2
    assert "error: the GPU ran out of memory" in capsys.readouterr().err
    assert (status()["status"], status()["reason"]) == ("failed", "the GPU ran out of memory")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(train, "run", taken_along)
    assert train.main(arguments) == 1
    assert status()["reason"] == "the GPU ran out of memory"


def test_ranks_that_disagree_name_the_key_and_both_values(monkeypatch):
    ranks = Ranks(rank=0, world_size=2, local_rank=0, device=torch.device("cpu"), control=None)
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value, {**value, "data.snli": "def"}])
    ranks.agree({"road.seed": 1, "data.snli": "def"})
    with pytest.raises(RoadError, match=r"disagree on data\.snli: rank 0 has 'abc', rank 1 has 'def'"):
        ranks.agree({"road.seed": 1, "data.snli": "abc"})


def test_a_micro_batch_is_a_run_of_neighbours_dealt_over_ranks():
    rows = torch.arange(12).numpy()
    assert [part.tolist() for part in micro_batches(rows, 3, 0, 2)] == [[0, 2, 4], [6, 8, 10]]
    assert [part.tolist() for part in micro_batches(rows, 3, 1, 2)] == [[1, 3, 5], [7, 9, 11]]
