"""Early stopping: after so many evaluations that bring nothing, on all processes together, resumed or not."""

import json
import math
import signal

import pytest
from forked import run_forked
from runs import records, tiny_config

from road_ds import loop, train
from road_ds.common.errors import RoadError
from road_ds.config.file import load_config
from road_ds.engine import checkpoint, milestones
from road_ds.engine.selection import Patience

MEANS = {1: 10.0, 2: 30.0, 3: 20.0, 4: 30.0, 5: 40.0, 6: 40.0}


@pytest.mark.parametrize(
    ("limit", "means", "over", "best"),
    [
        (2, [10, 30, 20], False, 2),
        (2, [10, 30, 20, 30], True, 2),  # one that only equals the best is no better
        (2, [10, 30, 20, 31], False, 4),
        (1, [10, 10], True, 1),
        (1, [5], False, 1),
        (1, [], False, None),
        (None, [3, 2, 1, 0], False, 1),
        (2, [math.nan, math.nan, math.nan], True, 1),
        (2, [math.nan, 1, math.nan, 0], True, 2),
        (3, [-2.0, -1.0, -3.0, -4.0], False, 2),
    ],
)
def test_by_hand(limit, means, over, best):
    """Of evaluations after steps 10, 20, ...; the same from the lines of metrics.jsonl, where NaN is null."""
    one = Patience(limit)
    for number, mean in enumerate(means, 1):
        one.see(10 * number, mean)
    lines = [{"step": 10 * n, "mean_headline": None if math.isnan(m) else m} for n, m in enumerate(means, 1)]
    lines += [{"step": 5, "loss": 1.0}, {"step": 1000, "mean_headline": 99.0}]
    for patience in (one, Patience.after(limit, lines, 10 * len(means))):
        assert patience.is_over is over
        assert not means or patience.best == 10 * best


def stopping(tmp_path, cache, **road) -> dict:
    settings = {"steps": 6, "evaluate_every": 1, "patience": 2, "save_every": 3, "use": ["inference", "paraphrase"]}
    return tiny_config(output=str(tmp_path / "run"), cache=str(cache), **settings | road)


@pytest.fixture
def scripted(monkeypatch):
    """Gives evaluations the means of MEANS, in the order in which they are made."""
    left = iter(MEANS.values())
    monkeypatch.setattr(milestones, "mean_headline", lambda results: next(left))


def test_a_run_ends_where_the_hand_says(tmp_path, cache, scripted, capsys):
    run = train(stopping(tmp_path, cache))
    said = capsys.readouterr().out
    assert run.results["step"] == 4, "30 after step 2; steps 3 and 4 bring nothing"
    assert [*run.curves["mean_headline"]] == [[1, 2, 3, 4], [10.0, 30.0, 20.0, 30.0]], "the last is not made twice"
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").step == 4, "the last step is saved"
    assert "step 2: inference accuracy " in said and "; mean 30.00, the best so far" in said
    assert "; mean 20.00 (best 30.00 after step 2)" in said
    assert "the run ends here: 2 evaluations in a row no better than the best before (road.patience)" in said
    assert json.loads((tmp_path / "run" / "status.json").read_text()) | {"pid": 0} == {
        "status": "finished", "step": 4, "reason": "", "pid": 0,
    }  # fmt: skip


def test_an_ended_run_ends_again_and_goes_on_with_more_patience(tmp_path, cache, scripted, monkeypatch):
    settings = stopping(tmp_path, cache)
    train(settings)
    monkeypatch.setattr(milestones, "mean_headline", lambda results: 30.0)  # as before; the others are in metrics.jsonl
    again = train(settings, resume=True)
    assert again.results["step"] == 4 and again.curves["mean_headline"].steps == [1, 2, 3, 4]
    with pytest.raises(
        RoadError, match=r"run: ended after 4 steps because road\.patience is 2: extend it with a larger"
    ):
        train(settings, extend=True, steps=8)
    left = iter([50.0, 60.0])
    monkeypatch.setattr(milestones, "mean_headline", lambda results: next(left))
    longer = train(settings, resume=True, patience=3)
    assert longer.results["step"] == 6 and longer.curves["mean_headline"].steps == [1, 2, 3, 4, 5, 6]


def test_an_evaluation_that_a_stop_prevented_is_made_up_for(tmp_path, cache, scripted, monkeypatch):
    """Stopped in step 4, before its evaluation, which ends the run."""
    real = loop.one_step

    def stopped(*args, step, **kwargs):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "one_step", stopped)
    settings = stopping(tmp_path, cache)
    with pytest.raises(KeyboardInterrupt):
        train(settings)
    assert [line["step"] for line in records(tmp_path / "run") if "mean_headline" in line] == [1, 2, 3]
    monkeypatch.setattr(loop, "one_step", real)
    run = train(settings, resume=True)
    assert run.results["step"] == 4 and run.curves["mean_headline"].steps == [1, 2, 3, 4]


def test_processes_end_together(tmp_path, cache):
    """Two, under ZeRO 2, on scores as they come: the run ends where the lines of metrics.jsonl say that it must."""
    config = stopping(tmp_path, cache, steps=12, patience=1)
    config |= {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 0.02}}}
    (tmp_path / "run.json").write_text(json.dumps(config))
    done = run_forked("road_ds/train.py", "--deepspeed_config", tmp_path / "run.json", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    means = {line["step"]: line["mean_headline"] for line in records(tmp_path / "run") if "mean_headline" in line}
    ends = [step for step in means if step > 1 and means[step] <= max(means[s] for s in means if s < step)]
    assert ends == [max(means)] and max(means) < 12
    assert json.loads((tmp_path / "run" / "results.json").read_text())["step"] == max(means)


@pytest.mark.parametrize("road", [{"evaluate_every": 0}, {"use": ["places"]}])
def test_patience_needs_evaluations(tmp_path, cache, config_file, road):
    config = stopping(tmp_path, cache, **road)
    config["road"]["datasets"]["places"]["dev"] = None
    with pytest.raises(
        RoadError, match="patience counts the evaluations of a run: set evaluate_every, and give a data set a dev"
    ):
        load_config(config)
