"""More steps for a finished run, and what a finished run keeps."""

import json
import math

import pytest
import torch
from runs import tiny_config
from safetensors.torch import load_file

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.engine import checkpoint
from road_ds.engine.optim import rate_at


def extending(tmp_path, cache, name: str = "run", **road) -> dict:
    settings = {
        "steps": 3,
        "save_every": 2,
        "dropout": 0.1,
        "log_every": 1,
        "use": ["inference", "places"],
        "passes": 2,
    }
    config = tiny_config(output=str(tmp_path / name), cache=str(cache), **settings | road)
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    return config


def weights(run) -> dict[str, torch.Tensor]:
    return {f"{h}/{k}": v for h, path in run.models.items() for k, v in load_file(path / "model.safetensors").items()}


def test_an_extended_run_is_the_longer_one(tmp_path, cache):
    """At a constant rate the bits are those of a run that was as long from the beginning, extended twice too."""
    more = {"evaluate_every": 2}
    train(extending(tmp_path, cache, **more))
    once = train(extending(tmp_path, cache, steps=5, **more), extend=True)
    assert once.results["step"] == 5 and once.curves["loss"].steps == [1, 2, 3, 4, 5]
    assert once.curves["mean_headline"].steps == [2, 3, 4, 5], "what was evaluated at the first end stays"
    twice = train(extending(tmp_path, cache, steps=7, **more), extend=True)
    whole = train(extending(tmp_path, cache, "whole", steps=7, **more))
    assert twice.curves["loss"] == whole.curves["loss"]
    left, right = weights(twice), weights(whole)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("stage", [0, 2])
def test_the_rates_are_those_of_the_longer_run(tmp_path, cache, stage):
    """A linear schedule had come to its end: it goes on where the longer one is by then."""
    settings = {"schedule": "linear", "warmup": 0.5, "layer_lr_decay": 0.8, "zero_optimization": {"stage": stage}}
    del settings["zero_optimization"]
    config = extending(tmp_path, cache, **settings) | {"zero_optimization": {"stage": stage}}
    train(config)
    run = train(config, extend=True, steps=8)
    before, after = [rate_at(s, 3, 2, "linear") for s in range(3)], [rate_at(s, 8, 4, "linear") for s in range(3, 8)]
    assert run.curves["lr"].values == pytest.approx([1e-3 * rate for rate in (*before, *after)])


def test_a_finished_run_keeps_checkpoints_only_where_it_is_told_to(tmp_path, cache, capsys):
    config = extending(tmp_path, cache, evaluate_every=1, select="best", keep=None)
    run = train(config)
    assert not (run.folder / "checkpoints").exists() and not (run.folder / "best").exists()
    status = (run.folder / "status.json").read_text()
    again = train(config, resume=True)
    assert "run has finished: nothing is left to do" in capsys.readouterr().out
    assert again.results == run.results and (run.folder / "status.json").read_text() == status
    with pytest.raises(
        RoadError,
        match=r"run has finished and kept no checkpoint, which an extended run goes on from: a run with road\.keep=1 keeps one; "
        rf"here a new run can begin with this one's model \(road\.model={run.folder}\)",
    ):
        train(config, extend=True, steps=9)
    assert (run.folder / "status.json").read_text() == status, "it is still finished"
    next_one = train(config, output=tmp_path / "next", model=run.folder, keep=1)
    assert [path.name for path in (next_one.folder / "checkpoints").glob("step-*")] == ["step-00000003"]
    assert (next_one.folder / "best").is_dir()


def test_a_kill_while_checkpoints_are_removed_leaves_whole_ones(tmp_path, monkeypatch):
    """The oldest goes first, and counts no more from its first removed file on."""
    for step in (2, 4, 6):
        (tmp_path / f"step-{step:08d}").mkdir()

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path, 0)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-00000006", "step-00000004"]
    monkeypatch.undo()
    checkpoint.prune(tmp_path, 0)
    assert not checkpoint.committed(tmp_path)


def test_an_extension_has_more_steps_and_the_same_settings(tmp_path, cache):
    config = extending(tmp_path, cache)
    with pytest.raises(RoadError, match="nothing to resume: no run was started there"):
        train(config, extend=True, steps=5)
    train(config)
    for steps in (3, 2):
        with pytest.raises(RoadError, match=r"run has had its 3 steps: to extend it, give it more \(road\.steps"):
            train(config, extend=True, steps=steps)
        (tmp_path / "run" / "status.json").write_text(
            json.dumps({"status": "finished", "step": 3, "reason": "", "pid": 1})
        )
    with pytest.raises(RoadError, match=r"these differ:\n.*\n.*\nroad\.seed +0 +1"):
        train(config, extend=True, steps=5, seed=1)
    with pytest.raises(RoadError, match=r"road\.steps +3 +5\nadd --extend to go on to more steps, set them back, or"):
        train(config, resume=True, steps=5)
    longer = train(config, extend=True, steps=4)
    assert longer.results["step"] == 4 and math.isfinite(longer.curves["loss"].values[-1])
