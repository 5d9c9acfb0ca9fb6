"""The campaign of tests/campaign.py in small: a few trials of the kinds that need no launcher, and that it can fail."""

import re
import time

import campaign
import numpy as np
import pytest
from trials import flips, kills
from trials.bench import Bench
from trials.outcome import Outcome, Trial, judged
from trials.processes import forked


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """The small run that trials are made on, on one process."""
    return Bench(tmp_path_factory.mktemp("campaign"), two=False)


QUICK = {kind: value for kind, value in campaign.kinds().items() if "2 ranks" not in kind}


@pytest.mark.parametrize("kind", QUICK)
def test_a_trial_of_each_kind_goes_as_promised(bench, kind):
    seed, first = (0, 1) if kind == "full disk" else (3, 0)  # a disk that has no room for the cache
    found = campaign.campaign(bench, 0, seed, {kind: QUICK[kind]}, first)
    assert found and all(trial.outcome.promised for trial in found), campaign.report(found)
    assert {trial.kind for trial in found} == {kind}


def test_every_phase_of_a_run_can_be_hit(bench):
    assert bench.phases(1) == ["start", "encoding", "steps", "evaluation", "saving", "export"]
    plans = [kills.draw(bench, 1, np.random.default_rng(number)) for number in range(60)]
    assert {plan.phase for plan in plans} == set(bench.phases(1))
    assert all(1 <= plan.event <= bench.events[1][plan.phase] for plan in plans)


def test_what_is_read_without_verification_is_silent_and_fails_the_campaign(bench, monkeypatch, capsys):
    """The control: were hashes not compared, the campaign would say so."""
    kind = "flip, checkpoints"
    monkeypatch.setitem(flips.READERS, kind, (flips.READERS[kind][0], flips.unverified, "kept"))
    found = [trial for number in range(8) for trial in flips.flip(bench, kind, number, np.random.default_rng(number))]
    assert any(trial.outcome is Outcome.SILENT for trial in found), campaign.report(found)
    assert not all(trial.outcome.promised for trial in found)


def test_other_weights_after_a_resume_are_silent(bench, monkeypatch):
    """The control of the other trials: their results are held against the true ones."""
    weights = bench.truth[1]["weights"]
    first = next(iter(weights))
    monkeypatch.setitem(bench.truth, 1, bench.truth[1] | {"weights": weights | {first: weights[first] + 1}})
    monkeypatch.setattr(flips, "damage", lambda *_: "nothing")
    (trial,) = flips.resume(bench, "flip, then resume", 0, np.random.default_rng(0))
    assert trial.outcome is Outcome.SILENT
    assert trial.said == f"1 of {len(weights)} weights differ, the first: {first}"


def test_a_difference_that_is_told_must_name_the_file():
    assert judged(0, "warning: run/best/score.json: lost", lambda: "x", "score.json")[0] is Outcome.NAMED
    assert judged(0, "warning: run/best/score.json: lost", lambda: "x", "weights")[0] is Outcome.SILENT
    assert judged(0, "warning: run/best/score.json: lost", lambda: "x")[0] is Outcome.SILENT


@pytest.mark.parametrize(
    ("code", "errors", "difference", "outcome"),
    [
        (0, "", "", Outcome.HELD),
        (0, "warning: the cached file is damaged", "", Outcome.REBUILT),
        (0, "warning: something else", "other scores", Outcome.SILENT),
        (2, "error: the file is damaged", "", Outcome.NAMED),
        (2, "usage: x", "", Outcome.TRACEBACK),
        (1, "Traceback (most recent call last):\n  ...\nKeyError: 'step'", "", Outcome.TRACEBACK),
        (-11, "", "", Outcome.TRACEBACK),
        (None, "", "", Outcome.HANG),
    ],
)
def test_outcomes(code, errors, difference, outcome):
    assert judged(code, errors, lambda: difference)[0] is outcome


def test_a_process_that_hangs_is_ended(tmp_path):
    assert forked(time.sleep, 100, log=tmp_path / "log", limit=0.5).code is None


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if not outcome.promised])
def test_anything_else_fails_the_campaign_and_says_how_to_repeat_it(monkeypatch, capsys, outcome):
    def trial(bench, number, generator):
        return [Trial("full disk", number, "size=8192", outcome, "why")]

    monkeypatch.setattr(campaign, "Bench", lambda folder, two: None)
    monkeypatch.setattr(campaign, "kinds", lambda: {"full disk": (1.0, trial)})
    assert campaign.main(["--minutes", "0", "--only", "full disk", "--trial", "7"]) == 1
    said = capsys.readouterr().out
    assert f"{outcome}: full disk --trial 7: size=8192: why" in said
    assert re.search(rf"^trial +in all +{outcome}$", said, re.MULTILINE)
