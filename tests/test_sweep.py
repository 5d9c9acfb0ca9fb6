"""Sweeps: what is searched, what is drawn, stopped, failed and resumed; and a real one, killed."""

import json
import math
import os
import signal
import sys
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from forked import Forked, start_forked
from runs import ROOT, error_of, tiny_config

from road_ds.config.file import load_config, override
from road_ds.engine.run_folder import RunFolder
from road_ds.recipes import findings, trials
from road_ds.recipes.inputs import content
from road_ds.recipes.launcher import Enough, Launcher
from road_ds.recipes.study import Study
from road_ds.recipes.sweep import headlines, load_sweep, refuse_unfit, runs_of

optuna = pytest.importorskip("optuna", reason="the extra [sweep] is not installed")

plot = findings.plot
LR, PASSES = "optimizer.params.lr", "road.passes"
SEARCH = {LR: {"low": 1e-4, "high": 1.0, "log": True}, PASSES: [1, 2, 3]}
DISTILL = {"objective": "weighted_kd", "temperature": 2, "weight": 0.5, "teachers": {"paraphrase": ["{teacher}"]}}


class Pretended:
    """Stands for what is launched: leaves behind what a run would, with scores that follow from its settings.

    faults: by run, its exit code; stops: by run, what is raised at its second evaluation, as by who kills the sweep.
    """

    def __init__(self):
        self.launched: list[tuple[str, str]] = []
        self.faults: dict[str, int] = {}
        self.stops: dict[str, BaseException] = {}
        self.undefined: set[str] = set()

    def run(self, launcher, command, folder):
        kind = next((kind for kind in ("teach", "evaluate") if kind in command), "train")
        self.launched.append((folder.name, "resume" if "--resume" in command else kind))
        if kind == "teach":
            return 0, ""
        data = json.loads(Path(command[command.index("--deepspeed_config") + 1]).read_text())
        for key, value in pairwise(command):
            if key == "--set":
                override(data, value)
        run = RunFolder(folder)
        run.begin({"road": {"steps": data["road"]["steps"]}}, anew="--resume" not in command)
        if folder.name in self.faults:
            run.status("failed", 1)
            return self.faults.pop(folder.name), "error: the training diverged"
        score = math.nan if folder.name in self.undefined else self.score(data)
        for step in (2, 4):
            (folder / "checkpoints" / "step-00000002").mkdir(parents=True, exist_ok=True)
            run.record({"step": step, "loss": 1.0})
            run.record(
                {
                    "step": step,
                    "places/exact": 0.0,
                    "mean_headline": score - 5 + step,
                }
            )
            launcher.watch()
            if step == 4 and folder.name in self.stops:
                raise self.stops.pop(folder.name)
        scores = {name: {"headline": metric, "row_metric": metric, "scores": {metric: score + i}} for i, (name, metric) in enumerate(HEADLINES)}  # fmt: skip
        (folder / "results.json").write_text(
            json.dumps({"scores": scores, "wall_seconds": 1, "seed": data["road"].get("seed")})
        )
        run.status("finished", 5)
        return 0, ""

    @staticmethod
    def score(data) -> float:
        """Highest at a rate of 0.01 and three passes, and more with the seed."""
        rate = data["optimizer"]["params"]["lr"]
        return 60 - 10 * abs(math.log10(rate) + 2) + data["road"]["passes"] + data["road"].get("seed", 0)


HEADLINES = [("places", "f1"), ("people", "f1"), ("inference", "accuracy"), ("paraphrase", "accuracy")]


@pytest.fixture
def pretended(monkeypatch) -> Pretended:
    pretended = Pretended()
    monkeypatch.setattr(Launcher, "run", lambda launcher, command, folder: pretended.run(launcher, command, folder))
    monkeypatch.setattr(trials, "PAUSE", 0.0)
    monkeypatch.setattr(findings, "plot", lambda study, path: None)  # half a second
    content.cache_clear()
    return pretended


@pytest.fixture
def sweep(tmp_path, cache, command):
    """Writes a sweep over base.json, starts it, and returns what the command did."""

    def sweep(*arguments, out: str = "out", base: dict | None = None, **settings):
        road = {"cache": str(cache), "evaluate_every": 2, **(base or {})}
        (tmp_path / "base.json").write_text(json.dumps(tiny_config(**road)))
        file = {"trial": {"config": "base.json"}, "search": SEARCH, "trials": 6, **settings}
        (tmp_path / "s.json").write_text(json.dumps(file))
        return command("sweep", tmp_path / "s.json", "--output", tmp_path / out, *arguments)

    return sweep


def lines_of(result: tuple[int, str, str]) -> list[list[str]]:
    """The rows of the table of trials, in words."""
    code, out, err = result
    assert code == 0, err
    table = out[out.index("trial      ended") :].split("\n\n")[0]
    return [line.split() for line in table.splitlines()[2:]]


def study_of(folder: Path) -> list:
    return optuna.load_study(storage=f"sqlite:///{folder}/study.db", study_name="sweep").trials


# ------------------------------------------------------------------------------------------------ a search


def test_a_search_ends_in_a_table_a_picture_and_a_file(tmp_path, sweep, pretended, monkeypatch):
    monkeypatch.setattr(findings, "plot", plot)
    result = sweep(trials=8, dataset="places")
    rows = lines_of(result)
    assert [row[0] for row in rows] == [f"trial-{n:03}" for n in range(8)]
    assert [name for name, _ in pretended.launched] == [row[0] for row in rows]
    scores = [float(row[2]) for row in rows]
    best = scores.index(max(scores))
    assert [row[1] for row in rows] == ["best" if n == best else "finished" for n in range(8)]
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 10_000
    assert f"Best: trial-{best:03}, {max(scores):.2f}. Its configuration: {tmp_path}/out/best.json" in result[1]

    config, ds = load_config(tmp_path / "out" / "best.json")
    params = study_of(tmp_path / "out")[best].params
    assert ds["optimizer"]["params"]["lr"] == params[LR] and config.passes == json.loads(params[PASSES])
    assert config.output == f"{tmp_path}/out/best" and max(scores) == pytest.approx(
        Pretended.score({**ds, "road": config.model_dump()}), abs=0.005
    )


def test_the_score_is_the_mean_headline_or_one_data_sets(tmp_path, sweep, pretended):
    every, one = lines_of(sweep(trials=1)), lines_of(sweep(out="one", trials=1, dataset="inference"))
    assert float(one[0][2]) - float(every[0][2]) == pytest.approx(0.5, abs=0.011)  # of +0, +1, +2, +3


def test_a_trial_of_several_seeds_has_their_mean(tmp_path, sweep, pretended):
    trial = {"config": "base.json", "each": {"seed": [1, 4]}, "set": {"road.seed": "{seed}"}}
    rows = lines_of(sweep(trials=2, trial=trial))
    assert [name for name, _ in pretended.launched] == ["trial-000-1", "trial-000-4", "trial-001-1", "trial-001-4"]
    assert float(rows[0][2]) - float(lines_of(sweep(out="alone", trials=1))[0][2]) == pytest.approx(2.5, abs=0.011)


def test_nothing_is_tried_twice(tmp_path, sweep, pretended):
    search = {PASSES: [1, 2, 3], "road.warmup": {"low": 0, "high": 1}}
    rows = lines_of(sweep(trials=20, search=search))
    assert sorted(row[3:] for row in rows) == [[str(p), str(w)] for p in (1, 2, 3) for w in (0, 1)]


def test_what_is_drawn_keeps_to_the_ranges(tmp_path, sweep, pretended):
    search = {
        "road.warmup": {"low": 0.0, "high": 0.3, "step": 0.1},
        "road.steps": {"low": 5, "high": 9, "step": 2},
        "road.layer_lr_decay": {"low": 0.5, "high": 1.0},
        "road.sampling": ["uniform", {"power": 0.5}],
        "road.dropout": [None, 0.1],
    }
    sweep(trials=8, search=search)
    found = [json.loads((tmp_path / "out" / f"trial-{n:03}" / "inputs.json").read_text()) for n in range(8)]
    assert {round(inputs["road.warmup"], 9) for inputs in found} <= {0.0, 0.1, 0.2, 0.3}
    assert {inputs["road.steps"] for inputs in found} <= {5, 7, 9}
    assert all(0.5 <= inputs["road.layer_lr_decay"] <= 1 for inputs in found)
    assert {inputs.get("road.sampling", inputs.get("road.sampling.power")) for inputs in found} == {"uniform", 0.5}
    assert {inputs["road.dropout"] for inputs in found} == {None, 0.1}


def test_keys_are_called_by_their_last_words():
    assert findings.short(["road.a.lr", "optimizer.params.lr", "road.passes"]) == {
        "road.a.lr": "a.lr",
        "optimizer.params.lr": "params.lr",
        "road.passes": "passes",
    }
    assert findings.short(["lr", "a.lr"]) == {"lr": "lr", "a.lr": "a.lr"}


# ------------------------------------------------------------------------------------------------ teachers


def test_students_alone_are_trained_again(tmp_path, sweep, pretended):
    """The teacher is trained once and asked once, whatever of temperature, weight and W is tried."""
    search = {
        "road.distill.temperature": {"low": 1.0, "high": 10.0},
        "road.distill.weight": [0.1, 0.9],
        "road.distill.wrong_scale": {"low": 0.0, "high": 1.0},
    }
    settings = {
        "stages": {"teacher": {"config": "base.json"}},
        "trial": {"config": "base.json", "set": {"road.distill": DISTILL}},
        "search": search,
    }
    lines_of(sweep(trials=4, **settings))
    assert pretended.launched == [
        ("teacher", "train"), ("trial-000", "teach"), *[(f"trial-{n:03}", "train") for n in range(4)],
    ]  # fmt: skip
    config, _ = load_config(tmp_path / "out" / "best.json")
    assert config.distill["teachers"] == {"paraphrase": [str(tmp_path / "out" / "teacher")]}
    pretended.launched.clear()
    lines_of(sweep(trials=5, **settings))  # a new command looks once whether the soft targets are still there
    assert pretended.launched == [("trial-004", "teach"), ("trial-004", "train")]


def test_other_rows_are_taught_anew(sweep, pretended):
    settings = {
        "stages": {"teacher": {"config": "base.json"}},
        "trial": {"config": "base.json", "set": {"road.distill": DISTILL}},
        "search": {"road.datasets.paraphrase.max_rows": [20, 30]},
    }
    lines_of(sweep(trials=2, **settings))
    assert [kind for _, kind in pretended.launched] == ["train", "teach", "train", "teach", "train"]


# ------------------------------------------------------------------------------------------------ interrupted


def test_interrupted_a_sweep_goes_on_as_if_it_had_not_been(tmp_path, sweep, pretended):
    lines_of(sweep(out="whole", trials=13))
    pretended.launched.clear()
    pretended.stops = {"trial-003": KeyboardInterrupt(), "trial-011": KeyboardInterrupt()}
    assert sweep(trials=13)[0] == 130 and sweep(trials=13)[0] == 130
    lines_of(sweep(trials=13))
    assert [trial.params for trial in study_of(tmp_path / "out")] == [
        trial.params for trial in study_of(tmp_path / "whole")
    ]
    again = [name for name, kind in pretended.launched if kind == "resume"]
    assert again == ["trial-003", "trial-011"] and len(pretended.launched) == 15
    sweep(out="other", trials=1, seed=1)
    assert study_of(tmp_path / "other")[0].params != study_of(tmp_path / "out")[0].params


def test_a_study_that_is_lost_is_found_in_the_folders(tmp_path, sweep, pretended):
    before = lines_of(sweep())
    (tmp_path / "out" / "study.db").write_text("no database")
    assert "study.db: cannot be read or written (" in error_of(sweep())
    (tmp_path / "out" / "study.db").unlink()
    pretended.launched.clear()
    assert lines_of(sweep()) == before and pretended.launched == []


def test_more_trials_go_on_from_those_that_are_there(tmp_path, sweep, pretended):
    lines_of(sweep(trials=3))
    rows = lines_of(sweep(trials=5))
    assert len(rows) == 5 == len(pretended.launched)
    assert lines_of(sweep(trials=2)) == rows  # fewer: nothing to do


# ------------------------------------------------------------------------------------------------ stopped early, failed


def test_a_trial_below_the_median_is_stopped_early(tmp_path, sweep, pretended):
    prune = {"trials": 3}
    rows = lines_of(sweep(trials=10, prune=prune))
    stopped = [row[0] for row in rows if row[1:3] == ["stopped", "early"]]
    reached = {trial.number: (trial.state.name, trial.intermediate_values[2]) for trial in study_of(tmp_path / "out")}
    for number, (state, score) in reached.items():  # by hand: against those that had finished before
        before = sorted(s for n, (other, s) in reached.items() if n < number and other == "COMPLETE")
        middle = (before[(len(before) - 1) // 2] + before[len(before) // 2]) / 2 if before else 0
        assert (state == "PRUNED") == (len(before) >= 3 and score < middle)
    assert stopped and all(not (tmp_path / "out" / name / "checkpoints").exists() for name in stopped)
    assert all((tmp_path / "out" / name / "metrics.jsonl").exists() for name in stopped)
    pretended.launched.clear()
    assert lines_of(sweep(trials=10, prune=prune)) == rows and pretended.launched == []


def test_one_data_sets_headline_is_its_own_metric_or_its_tasks(config_file):
    config = tiny_config()
    assert headlines("paraphrase", load_config(config_file(config))[0]) == ["paraphrase/accuracy"]
    config["road"] |= {"datasets": ["cola"], "tasks": {}}
    assert headlines("cola", load_config(config_file(config))[0]) == ["cola/mcc", "cola/accuracy"]


def test_a_trial_that_was_to_be_stopped_is_not_started_again(tmp_path, sweep, pretended, monkeypatch):
    """Where the sweep is killed between what the evaluation said and what is kept of it."""
    whole = lines_of(sweep(out="whole", trials=10, prune={"trials": 3}))
    end, lost = Study.end, []

    def end_or_die(study, trial, state, *arguments, **more):
        if state == "PRUNED" and not lost:
            lost.append(trial.number)
            raise KeyboardInterrupt
        end(study, trial, state, *arguments, **more)

    monkeypatch.setattr(Study, "end", end_or_die)
    assert sweep(trials=10, prune={"trials": 3})[0] == 130
    pretended.launched.clear()
    assert lines_of(sweep(trials=10, prune={"trials": 3})) == whole
    assert f"trial-{lost[0]:03}" not in [name for name, _ in pretended.launched]


def test_what_its_settings_break_is_a_failed_trial_and_the_search_goes_on(tmp_path, sweep, pretended):
    pretended.faults = {"trial-001": 2}
    result = sweep(trials=3)
    assert [row[1] for row in lines_of(result)].count("failed") == 1
    assert "trial-001 failed: the training diverged\n" in result[1]
    assert len(study_of(tmp_path / "out")) == 3


def test_three_that_fail_in_a_row_end_the_search(sweep, pretended):
    pretended.faults = {f"trial-{number:03}": 2 for number in range(1, 6)}
    code, _, err = sweep(trials=9)
    assert code == 2 and len(pretended.launched) == 4
    assert err.startswith("error: trial-003 failed: the training diverged\nits output is in ")
    assert err.endswith("trial-003/log.txt; the same sweep goes on from here\n")


def test_what_is_no_settings_fault_ends_the_search_and_is_tried_again(sweep, pretended):
    pretended.faults = {"trial-001": 7}
    code, _, err = sweep(trials=2)
    assert code == 7 and "trial-001 failed: the training diverged" in err
    assert [row[1] for row in lines_of(sweep(trials=2))].count("failed") == 0
    assert [name for name, _ in pretended.launched] == ["trial-000", "trial-001", "trial-001"]


def test_a_score_that_is_no_number_is_a_failed_trial(sweep, pretended):
    pretended.undefined = {"trial-000", "trial-001"}
    code, out, err = sweep(trials=2)
    assert code == 2 and out.count("/results.json: NaN is not JSON") == 2 and "no trial has finished" in err


# ------------------------------------------------------------------------------------------------ what does not hold


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": {"road.pases": [1, 2]}}, "road.pases: unknown key; did you mean 'passes'?"),
        ({"search": {PASSES: [1, "two"]}}, "search.road.passes: 'two': {base}: road.passes: got 'two'; input should be a valid int"),
        ({"search": {PASSES: {"low": 1.0, "high": 3.0}}}, "search.road.passes: 1.0: {base}: road.passes: got 1.0; "),
        ({"search": {LR: {"low": 1, "high": 1}}}, "search.optimizer.params.lr: low 1, high 1: an empty range"),
        ({"search": {LR: {"low": 0.0, "high": 1.0, "log": True}}}, "low 0: a log range must be above 0"),
        ({"search": {LR: {"low": 0.0, "high": 1.0, "step": 2.0}}}, "step 2: expected at most high - low"),
        ({"search": {PASSES: {"low": 1, "high": 4, "step": 0.5}}}, "low and high are whole numbers: write 1.0 for others"),
        ({"search": {PASSES: {"low": 1, "hihg": 4}}}, "hihg: unknown key; did you mean 'high'?"),
        ({"search": {PASSES: []}}, "search.road.passes: got []; list should have at least 1 item"),
        ({"search": {PASSES: [1, 1]}}, "road.passes: got [1, 1]; expected different values"),
        ({"search": {}}, "search: got {}; dictionary should have at least 1 item"),
        ({"search": {"road.distill.weight": [0.1, 0.9]}}, "search.road.distill.weight: {base} has no road.distill: add it there, or to trial.set"),
        ({"search": {"road.output": ["a", "b"]}}, "'road.output': expected the key of a setting"),
        ({"search": {"road.distill": [None], "road.distill.weight": [0.1]}}, "road.distill holds road.distill.weight: search one of them"),
        ({"trial": {"config": "base.json", "set": {PASSES: 2}}}, "search.road.passes: trial.set gives road.passes a value: leave one out"),
        ({"trial": {"config": "none.json"}}, "cannot read {folder}/none.json: No such file"),
        ({"trial": {"config": "base.json", "evaluate": ["x"]}}, "trial.evaluate: a trial trains: leave it out"),
        ({"trial": {"config": "base.json", "set": {"road.model": "{mtl}"}}}, "{mtl} is no variable of `each`, no stage and no run"),
        ({"dataset": "place"}, "dataset: got 'place'; did you mean 'places'?; {base} scores places, people, inference, paraphrase"),
        ({"prune": {}, "base": {"evaluate_every": 0}}, "prune: {base} scores nothing before its end: set road.evaluate_every"),
        ({"trails": 3}, "trails: unknown key; did you mean 'trials'?"),
        ({"trials": 0}, "trials: got 0; input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_one_clear_error(tmp_path, sweep, pretended, settings, message):
    for name, value in (("folder", tmp_path), ("base", tmp_path / "base.json")):
        message = message.replace(f"{{{name}}}", str(value))
    said = error_of(sweep(**settings))
    assert message in said and said.count("\n") <= 1 and pretended.launched == []


def test_a_fault_of_the_file_is_said_once_and_a_value_s_beside_it(sweep, pretended):
    """Whatever value is tried the file is at fault; so it is no value's."""
    settings = {"base": {"log_evry": 3}, "search": {PASSES: [1, 2, "two"], LR: {"low": 1e-4, "high": 1e-3}}}
    said = error_of(sweep(**settings))
    assert said.count("log_evry: unknown key; did you mean 'log_every'?") == 1
    assert said.count("search.") == said.count("search.road.passes: 'two': ") == 1 and pretended.launched == []


def test_a_setting_on_the_command_line_that_is_searched(sweep, pretended):
    assert "--set road.passes: " in error_of(sweep("--set", "road.passes=2"))
    assert pretended.launched == []


def test_a_folder_keeps_to_one_search(tmp_path, sweep, pretended):
    sweep(trials=1)
    for settings, message in [
        ({"search": {**SEARCH, PASSES: [1, 2]}}, "\n  search.road.passes: [1, 2, 3] -> [1, 2]\n"),
        ({"base": {"dropout": 0.1}}, "\n  trial: road.dropout: 0.0 -> 0.1\n"),
        ({"seed": 3}, "\n  seed: 0 -> 3\n"),
        ({"dataset": "places"}, "\n  dataset: - -> 'places'\n"),
    ]:
        said = error_of(sweep(**settings))
        assert "out holds a sweep of something else:" in said and message in said
        assert said.endswith("set it back, or use another --output")
    assert len(pretended.launched) == 1


def test_without_the_library_it_says_what_to_install(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert error_of(sweep()).endswith("optuna is not installed: pip install -c constraints.txt -e '.[sweep]'")


def test_the_example_holds(tmp_path):
    path = ROOT / "ds_configs" / "sweeps" / "kd.json"
    example = load_sweep(path)
    refuse_unfit(example, path, tmp_path, {})
    runs = runs_of(example, path, tmp_path, "trial-000", example.first_values(), {})
    assert [run.name for run in runs][-2:] == ["trial-000-1", "trial-000-2"] and len(runs) == 6


# ------------------------------------------------------------------------------------------------ processes


def test_a_run_that_is_enough_is_asked_to_save_and_waited_for(tmp_path):
    program = (
        "import signal, sys, time\n"
        "def stop(*_): time.sleep(0.3); print('saved', flush=True); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop); print('ready', flush=True); time.sleep(60)"
    )

    def watch():
        if "ready" in (tmp_path / "log.txt").read_text().splitlines():
            raise Enough

    with pytest.raises(Enough):
        Launcher([], watch=watch).run([sys.executable, "-c", program], tmp_path)
    assert (tmp_path / "log.txt").read_text().splitlines()[-1] == "saved"


def test_a_real_sweep_killed_and_resumed(tmp_path, sweep, monkeypatch):
    """Two trials: the second run, a launched one, is left behind by a sweep that SIGKILL ends, then resumed."""
    settings = {"base": {"steps": 60, "save_every": 10, "evaluate_every": 20, "dropout": 0.1}}
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("road_ds.recipes.launcher.Launcher", Forked)
        lines_of(sweep(trials=1, **settings))
    first = (out / "trial-000" / "results.json").read_bytes()

    file = tmp_path / "s.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "trials": 2}))
    killed = start_forked(tmp_path / "killed", "-m", "road_ds", "sweep", file, "--output", out)
    end = time.monotonic() + 300
    while not any((out / "trial-001" / "checkpoints").glob("step-*")):
        assert killed.is_alive() and time.monotonic() < end
        time.sleep(0.02)
    left = psutil.Process(killed.pid).children()
    killed.kill()
    killed.join()
    for process in left:
        process.send_signal(signal.SIGTERM)
    psutil.wait_procs(left, timeout=120)

    monkeypatch.setattr("road_ds.recipes.launcher.Launcher", Forked)
    result = sweep(trials=2, **settings)
    assert [row[0] for row in lines_of(result)] == ["trial-000", "trial-001"]
    assert "[1/1] trial-001: train, resumed\n" in result[1] and "trial-000: train" not in result[1]
    assert (out / "trial-000" / "results.json").read_bytes() == first
    best = json.loads((out / "best.json").read_text())
    assert best["road"]["output"] == f"{out}/best" and os.path.getsize(out / "sweep.png")
