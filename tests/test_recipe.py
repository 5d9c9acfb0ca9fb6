"""Runs of runs: what a recipe stands for, what is done already, and a real one through the launcher."""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from forked import Forked, run_forked, start_forked
from runs import ROOT, error_of, tiny_config
from safetensors.torch import load_file

from road_ds.common.errors import RoadError
from road_ds.config.file import load_config
from road_ds.engine.run_folder import RunFolder
from road_ds.recipes.inputs import content, keep_inputs
from road_ds.recipes.launcher import Launcher
from road_ds.recipes.recipe import load_recipe, plan
from road_ds.recipes.stages import StageError, carry_out, commands, inputs_for, look

RECIPES = [
    path
    for folder in ("recipes", "results")
    for path in sorted((ROOT / "ds_configs" / folder).glob("*.json"))
    if "stages" in json.loads(path.read_text())
]

LABELS = ["entailment", "neutral", "contradiction"]


def planned(tmp_path: Path, stages: dict, **more) -> list:
    """The runs of a recipe over the file base.json."""
    stages = {name: {"config": "base.json", **stage} for name, stage in stages.items()}
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"stages": stages, **more}))
    return plan(load_recipe(path), path, tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- plan


def test_a_stage_is_a_run_for_each_combination(tmp_path):
    each = {"dataset": ["people", "places"], "seed": [1, 2]}
    runs = planned(
        tmp_path, {"a": {"each": each, "set": {"road.seed": "{seed}", "road.use": ["{dataset}"], "x": "s{seed}"}}}
    )
    assert [run.name for run in runs] == ["a-people-1", "a-people-2", "a-places-1", "a-places-2"]
    assert runs[1].settings == {"road.seed": 2, "road.use": ["people"], "x": "s2"}  # a lone placeholder keeps its type
    assert runs[1].folder == tmp_path / "out" / "a-people-2" and runs[1].config == tmp_path / "base.json"
    assert runs[1].overrides[:2] == ["road.seed=2", 'road.use=["people"]'] and runs[1].group == "a"
    assert "road.output=" in runs[1].overrides[-1]
    assert planned(tmp_path, {"b": {"each": {"passes": [1, 4], "seed": [1]}}})[1].group == "b-4"


def test_needs_come_from_placeholders_and_first(tmp_path):
    runs = planned(tmp_path, {
        "last": {"set": {"road.model": "{mid}/model/qa"}},
        "mid": {"set": {"road.distill.teachers": {"rows": ["{first}"]}}},
        "first": {},
    })  # fmt: skip
    assert [(run.name, run.needs) for run in runs] == [("first", ()), ("mid", ("first",)), ("last", ("mid",))]
    assert runs[2].settings == {"road.model": f"{tmp_path}/out/mid/model/qa"}


def test_a_stage_in_a_list_is_all_its_runs_and_variables_are_matched(tmp_path):
    seeds = {"each": {"seed": [1, 2]}}
    runs = {run.name: run for run in planned(tmp_path, {
        "teacher": {"each": {"dataset": ["people", "places"], "member": [7, 8]}},
        "start": seeds,
        "student": {"each": {"dataset": ["people"], "seed": [1, 2]}, "set": {
            "road.model": "{start}", "teachers": {"{dataset}": ["{teacher}", "hub/name"]}, "one": "{teacher-places-8}/x"}},
        "mean": {"evaluate": ["{start}", "{teacher-people-7}"]},
    })}  # fmt: skip
    out = str(tmp_path / "out")
    assert runs["student-people-2"].settings == {
        "road.model": f"{out}/start-2",
        "teachers": {"people": [f"{out}/teacher-people-7", f"{out}/teacher-people-8", "hub/name"]},
        "one": f"{out}/teacher-places-8/x",
    }
    assert runs["student-people-2"].needs == ("start-2", "teacher-people-7", "teacher-people-8", "teacher-places-8")
    assert runs["mean"].models == (f"{out}/start-1", f"{out}/start-2", f"{out}/teacher-people-7")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"a": {"set": {"x": "{b}"}}, "b": {"set": {"x": "{a}"}}}, "runs need each other in a circle: a -> b -> a"),
        ({"a": {"set": {"x": "{a}"}}}, "in a circle: a -> a"),
        ({"teacher": {}, "b": {"set": {"x": ["{techer}"]}}}, r"stages.b: \{techer\} is no variable .*did you mean 'teacher'"),
        ({"t": {"each": {"m": [1, 2]}}, "b": {"set": {"x": "{t}"}}}, "'{t}' stands for 2 runs .*give it inside a list"),
        ({"t": {"each": {"seed": [1]}}, "b": {"each": {"seed": [2]}, "set": {"x": "{t}"}}}, "has no run with seed 2; it has t-1"),
        ({"a": {"each": {"x": [1]}}, "a-1": {}}, "two runs are called 'a-1'"),
        ({"a": {"each": {"b": [1]}}, "b": {}}, "a.each: 'b' is the name of a stage too"),
        ({"a": {"each": {"b": ["../x"]}}}, "each: '../x' becomes part of a folder's name"),
        ({"a": {"each": {"b": [1, "1"]}}}, "expected different values"),
        ({"a": {"each": {"b": []}}}, "stages.a.each.b: got .*at least 1 item"),
        ({"a": {"sett": {}}}, "stages.a.sett: unknown key; did you mean 'set'"),
        ({"../a": {}}, "the name '../a' may hold only letters"),
        ({}, "stages: got {}; dictionary should have at least 1 item"),
        ({"a": {"set": {"road.output": "x"}}}, "road.output is the recipe's to choose"),
    ],
)  # fmt: skip
def test_a_recipe_that_does_not_hold(tmp_path, stages, message):
    with pytest.raises(RoadError, match=message):
        planned(tmp_path, stages)


def test_compare_must_name_stages(tmp_path):
    with pytest.raises(RoadError, match=r"compare.stages: there is no stage 'kdd'; did you mean 'kd'"):
        planned(tmp_path, {"kd": {}}, compare={"baseline": "kd", "stages": ["kdd"]})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_our_own_recipes_hold(path):
    """Every run's settings are valid, and what is compared is there."""
    recipe = load_recipe(path)
    runs = plan(recipe, path, Path("out"))
    assert recipe.about and recipe.compare
    stages = recipe.compare.stages or recipe.stages
    assert recipe.compare.baseline in {run.group for run in runs if run.stage in stages}
    for run in runs:
        config, _ = load_config(run.config, run.overrides)
        assert all(spec.train or run.models for spec in config.datasets.values())


# --------------------------------------------------------------------------------- what is done, what is not


class Pretend(Launcher):
    """Launches nothing: leaves behind what a run would. `faults`: by run, what happens instead of finishing."""

    def __init__(self, faults: dict[str, int] | None = None):
        super().__init__([])
        object.__setattr__(self, "faults", faults or {})
        object.__setattr__(self, "launched", [])

    def run(self, command, folder):
        self.launched.append((folder.name, "teach" if "teach" in command else "evaluate" if "evaluate" in command else
                              "resume" if "--resume" in command else "train"))  # fmt: skip
        if "teach" in command:
            return 0, ""
        folder.mkdir(parents=True, exist_ok=True)
        code = self.faults.get(folder.name, 0)
        if "evaluate" not in command:
            run = RunFolder(folder)
            run.begin({})
            run.status("failed" if code else "finished", 1)
        if code:
            (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
            return code, "error: the disk is full"
        found = {"scores": {}, "wall_seconds": 1, "when": time.time_ns()}
        (folder / "results.json").write_text(json.dumps(found))
        return 0, ""


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(n), "text": f"text {n}", "label": LABELS[n % 3]}) + "\n" for n in range(30))
    )
    return path


@pytest.fixture
def base(tmp_path, cache, rows):
    """A run's file over rows on disk; `change` rewrites it."""

    def change(**road):
        config = tiny_config(cache=str(cache), **road)
        config["road"]["tasks"] = {"inference": {"type": "classification", "labels": LABELS}}
        config["road"]["datasets"] = {"rows": {"task": "inference", "train": str(rows), "dev": 0.3}}
        (tmp_path / "base.json").write_text(json.dumps(config))

    change()
    return change


DISTILL = {"objective": "kd", "teachers": {"rows": ["{teacher}"]}}
STAGES = {
    "teacher": {"each": {"seed": [1, 2]}, "set": {"road.seed": "{seed}"}},
    "mean": {"evaluate": ["{teacher}"]},
    "student": {"set": {"road.distill": DISTILL}},
    "other": {},
}


def made(runs, redo=(), **faults) -> list[tuple[str, str]]:
    """What was launched to make the runs."""
    launcher = Pretend(faults)
    carry_out(look(runs, redo), launcher)
    return launcher.launched


def states(runs, redo=()) -> dict[str, str]:
    return {step.run.name: step.state for step in look(runs, redo)}


def test_what_is_done_stays(tmp_path, base):
    runs = planned(tmp_path, STAGES)
    assert set(states(runs).values()) == {"to do"}
    assert made(runs) == [
        ("teacher-1", "train"), ("teacher-2", "train"), ("mean", "evaluate"), ("student", "teach"), ("student", "train"),
        ("other", "train"),
    ]  # fmt: skip
    assert set(states(runs).values()) == {"done"} and made(runs) == []
    (tmp_path / "out" / "other" / "results.json").unlink()
    assert made(runs) == [("other", "train")]


def test_a_failed_run_stops_the_recipe_and_goes_on_from_its_checkpoint(tmp_path, base):
    runs = planned(tmp_path, STAGES)
    with pytest.raises(StageError, match=r"teacher-2 failed: the disk is full\n.*teacher-2/log.txt") as caught:
        made(runs, **{"teacher-2": 7})
    assert caught.value.code == 7
    assert states(runs) == {
        "teacher-1": "done",
        "teacher-2": "resume",
        "mean": "to do",
        "student": "to do",
        "other": "to do",
    }
    with pytest.raises(StageError, match="student failed: "):
        made(runs, student=7)
    assert made(runs) == [("student", "teach"), ("student", "resume"), ("other", "train")]


def test_redo_makes_a_stage_and_what_needs_it_anew(tmp_path, base):
    runs = planned(tmp_path, STAGES)
    made(runs)
    folder = tmp_path / "out" / "teacher-2"
    (folder / "checkpoints" / "step-00000008").mkdir(parents=True)  # of the run before: the new one must not resume it
    assert states(runs, ["teacher-2"]) == {"teacher-1": "done", "teacher-2": "redo", "mean": "redo", "student": "redo", "other": "done"}  # fmt: skip
    assert [name for name, _ in made(runs, ["teacher-2"])] == ["teacher-2", "mean", "student", "student"]
    assert not (folder / "checkpoints").exists() and set(states(runs).values()) == {"done"}
    assert [name for name, kind in made(runs, ["teacher"]) if kind == "train"] == ["teacher-1", "teacher-2", "student"]
    with pytest.raises(RoadError, match="--redo studnt: no such stage or run; did you mean 'student'"):
        look(runs, ["studnt"])


def test_other_inputs_are_refused_by_name(tmp_path, base, rows):
    runs = planned(tmp_path, STAGES)
    made(runs)
    base(steps=6, log_every=3, precision="fp32")
    with pytest.raises(
        RoadError, match=r"teacher-1 was made from other inputs .*\n  road.steps: 5 -> 6\nadd --redo teacher-1"
    ):
        look(runs)
    base(log_every=3, save_every=4, evaluate_batch_size=8)  # what decides on no number
    assert set(states(runs).values()) == {"done"}
    rows.write_text(rows.read_text().replace("text 7", "text seven"))
    content.cache_clear()
    with pytest.raises(RoadError, match=rf"rows of rows, train: {rows}: [0-9a-f]{{12}} -> [0-9a-f]{{12}}\n"):
        look(runs)


def test_a_teacher_that_was_made_anew_is_another_input(tmp_path, base):
    """As when a redo was interrupted between the teacher and its student."""
    runs = planned(tmp_path, STAGES)
    made(runs)
    (tmp_path / "out" / "teacher-1" / "results.json").write_text(json.dumps({"scores": {}, "wall_seconds": 2}))
    with pytest.raises(RoadError, match=r"mean was made from other inputs .*\n  run teacher-1: \w{12} -> \w{12}\n"):
        look(runs)


def test_a_model_on_disk_counts_by_content(tmp_path, base):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1")
    runs = planned(tmp_path, {"a": {"set": {"road.model": str(tmp_path / "model")}}})
    made(runs)
    content.cache_clear()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"2")
    with pytest.raises(RoadError, match=rf"model {tmp_path}/model: \w{{12}} -> \w{{12}}"):
        look(runs)


def test_moved_with_all_its_runs_a_recipe_is_still_done(tmp_path, base):
    made(planned(tmp_path, STAGES))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    path = tmp_path / "r.json"
    assert set(states(plan(load_recipe(path), path, tmp_path / "elsewhere")).values()) == {"done"}


def test_a_folder_that_no_recipe_made_is_left_alone(tmp_path, base):
    (tmp_path / "out" / "other").mkdir(parents=True)
    (tmp_path / "out" / "other" / "config.json").write_text("{}")
    with pytest.raises(RoadError, match="other holds a run that no recipe made"):
        look(planned(tmp_path, STAGES))


def test_what_no_run_left_is_not_removed(tmp_path, base):
    """Neither before the first launch, nor after a start that failed before its run began."""
    mine = tmp_path / "out" / "other" / "model" / "weights"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    runs = planned(tmp_path, {"other": {}})
    with pytest.raises(RoadError, match="other holds a run that no recipe made"):
        made(runs)
    (run,) = runs
    keep_inputs(run.folder, inputs_for(run, *load_config(run.config, run.overrides), {})[0])
    for redo in ((), ("other",)):
        with pytest.raises(RoadError, match=r"other holds model and no run\.json"):
            made(runs, redo)
    assert mine.read_text() == "mine"


def test_settings_are_checked_before_anything_runs(tmp_path, base):
    for settings, message in [
        ({"road.stepz": 3}, "^other: .*road.stepz: unknown key; did you mean 'steps'"),
        ({"road.distill": {"objective": "kdd"}}, "^other: road.distill.objective: got 'kdd'; did you mean 'kd'"),
        ({"road.datasets.rows.train": "none.jsonl"}, "^other: none.jsonl: cannot be read: No such file"),
    ]:
        with pytest.raises(RoadError, match=message):
            look(planned(tmp_path, {**STAGES, "other": {"set": settings}}))
    assert not (tmp_path / "out").exists()


def test_the_command_lines(tmp_path, base):
    steps = {step.run.name: step for step in look(planned(tmp_path, STAGES))}
    launcher = Launcher(["--num_gpus", "2", "--master_port", "1"])
    teach, train = commands(steps["student"], launcher)
    launched = [sys.executable, "-m", "road_ds", "launch", "--num_gpus", "2", "--master_port", "1"]
    assert teach[:11] == [*launched, "--module", "road_ds", "teach"]
    assert train[:10] == [*launched, str(ROOT / "road_ds" / "train.py"), "--deepspeed_config"]
    assert next(iter(commands(steps["other"], Launcher([]), "--resume")))[4] == "--master_port"  # a free one
    (evaluate,) = commands(steps["mean"], launcher)
    out = tmp_path / "out"
    assert evaluate[1:7] == ["-m", "road_ds", "evaluate", f"{out}/teacher-1", f"{out}/teacher-2", "--config"]


# ------------------------------------------------------------------------------------------------- real runs


def recipe_of(tmp_path, stages: dict, **more) -> Path:
    stages = {name: {"config": "base.json", **stage} for name, stage in stages.items()}
    (tmp_path / "r.json").write_text(json.dumps({"stages": stages, **more}))
    return tmp_path / "r.json"


def until(what, process) -> None:
    """Waits until something holds while a process lives."""
    end = time.monotonic() + 400
    while not what():
        assert psutil.pid_exists(process.pid) and time.monotonic() < end
        time.sleep(0.02)


def is_locked(folder: Path) -> bool:
    with (folder / ".recipe.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_recipe_through_the_launcher_killed_stopped_and_resumed(tmp_path, base, command, monkeypatch):
    """Its teacher is interrupted twice, and ends as one that never was; then its student is made."""
    base(steps=100, save_every=5, dropout=0.1)
    stages = {"teacher": {}, "student": {"set": {"road.steps": 4, "road.distill": DISTILL}}}
    path, teacher = recipe_of(tmp_path, stages, compare={"baseline": "teacher"}), tmp_path / "out" / "teacher"
    recipe = ("recipe", path, "--output", tmp_path / "out")

    def newest() -> str:
        return max((folder.name for folder in (teacher / "checkpoints").glob("step-*")), default="")

    def status() -> str:
        return json.loads((teacher / "status.json").read_text())["status"]

    killed = start_forked(tmp_path / "killed", "-m", "road_ds", *recipe)
    until(newest, killed)
    runner = psutil.Process(killed.pid).children()[0]
    killed.kill()
    killed.join()
    kept = newest()
    until(lambda: newest() > kept, runner)
    assert is_locked(tmp_path / "out")  # the run at work goes on, and keeps others out
    runner.terminate()
    psutil.wait_procs([runner], timeout=240)
    assert status() == "preempted" and not is_locked(tmp_path / "out")

    stopped, kept = start_forked(tmp_path / "stopped", "-m", "road_ds", *recipe), newest()
    until(lambda: newest() > kept, stopped)
    stopped.terminate()
    stopped.join(240)
    said = (tmp_path / "stopped.out").read_text()
    assert stopped.exitcode == 143 and "[1/2] teacher: train, resumed\n" in said, said[-3000:]
    assert not [p.pid for p in psutil.process_iter(["cmdline"]) if str(teacher) in " ".join(p.info["cmdline"] or ())]
    assert status() == "preempted" and newest() < "step-00000100"

    monkeypatch.setattr("road_ds.recipes.launcher.Launcher", Forked)
    code, said, err = command(*recipe)
    assert code == 0 and "resumed from step-" in said and "[2/2] student: teach, train\n" in said, (said + err)[-3000:]
    assert (teacher / "log.txt").read_text().count("$ ") == 3
    code, said, err = command(*recipe)
    assert code == 0 and "[1/2] teacher: done\n[2/2] student: done\n" in said, err
    assert "difference: against teacher" in said and (tmp_path / "out" / "compare.html").exists()

    whole = tmp_path / "whole"
    done = run_forked(
        "road_ds/train.py", "--deepspeed_config", teacher / "config.json", "--set", f"road.output={whole}"
    )
    assert done.returncode == 0 and "resumed" not in done.stdout, done.stderr[-3000:]
    kept, anew = (load_file(run / "model" / "inference" / "model.safetensors") for run in (teacher, whole))
    assert all(torch.equal(kept[key], anew[key]) for key in kept)


def test_a_stage_that_fails_says_why(tmp_path, base, command, monkeypatch):
    """And its exit code is passed on, by the command that waits for it too."""
    script = tmp_path / "script.py"
    script.write_text("import sys; print('error: road.model: what is wrong\\nand more', file=sys.stderr); sys.exit(7)")
    monkeypatch.setattr("road_ds.recipes.launcher.TRAIN", script)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    path = recipe_of(tmp_path, {"a": {"set": {"road.steps": 7}}})
    code, out, err = command("recipe", path, "--output", tmp_path / "out")
    assert code == 7 and "[1/1] a: train" in out
    assert err.startswith("error: a failed: road.model: what is wrong\nits output is in ")
    assert "the same recipe goes on from here" in err
    assert "road.steps=7" in (tmp_path / "out" / "a" / "log.txt").read_text()


def test_dry_run_prints_the_plan_and_makes_nothing(tmp_path, base, command):
    path = recipe_of(tmp_path, STAGES, compare={"baseline": "teachr"})
    assert "compare.baseline: got 'teachr'; did you mean 'teacher'" in error_of(command("recipe", path))
    path = recipe_of(tmp_path, STAGES)
    code, out, err = command("recipe", path, "--output", tmp_path / "out", "--dry-run", "--set", "road.steps=3")
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines()[2:7]] == ["teacher-1", "teacher-2", "mean", "student", "other"]
    assert out.count("--set road.steps=3") == 6 and not (tmp_path / "out").exists()


def test_a_plan_needs_no_rows(tmp_path, base, command, rows):
    """They are named below the plan, all of them; a run needs them, and a finished one stays done."""
    path = recipe_of(tmp_path, {"a": {}, "b": {"set": {"road.datasets.rows.dev": "none.tsv"}}, "quac": {"set": {
        "road.datasets": ["quac"], "road.tasks": {"mrc": {"type": "span_qa"}}}}})  # fmt: skip
    made([run for run in plan(load_recipe(path), path, tmp_path / "out") if run.name == "a"])
    rows.rename(tmp_path / "elsewhere")
    content.cache_clear()
    arguments = ["recipe", path, "--output", tmp_path / "out"]
    code, out, err = command(*arguments, "--dry-run")
    assert code == 0, err
    assert [line.split()[1:4:2] for line in out.splitlines()[2:5]] == [["a", "done"], ["b", "to"], ["quac", "to"]]
    gone = [
        f"a, b: {rows}: cannot be read: No such file or directory: expected a data file",
        "b: none.tsv: cannot be read: No such file or directory: expected a data file",
        "quac: datasets.quac: no hub has its rows as data",
    ]
    assert [line for line in out.splitlines() if line.startswith("not there yet")] == ["not there yet:"]
    assert all(f"  {line}" in out for line in gone) and "--deepspeed_config" in out
    said = error_of(command(*arguments)).splitlines()
    assert [line.startswith(word) for line, word in zip(said, ["error: " + gone[0], *gone[1:]], strict=True)] == [
        True
    ] * 3


def test_configs_count_from_the_recipe_and_rows_from_the_working_folder(tmp_path, base, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "rows.jsonl").rename(tmp_path / "work" / "rows.jsonl")
    change = {"config": "../base.json", "set": {"road.datasets.rows.train": "rows.jsonl"}}
    (tmp_path / "recipes" / "r.json").write_text(json.dumps({"stages": {"a": change}}))
    monkeypatch.chdir(tmp_path / "work")
    path = Path("../recipes/r.json")
    content.cache_clear()
    (step,) = look(plan(load_recipe(path), path, Path("out")))
    assert step.state == "to do" and step.missing == {} and step.run.folder == Path("out/a")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_our_own_recipes_can_be_planned_anywhere(path, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("recipe", path, "--dry-run")
    assert code == 0 and "--deepspeed_config" in out, err


def test_one_recipe_at_a_time_in_a_folder(tmp_path, base, command):
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".recipe.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = os.dup(held.fileno())  # as a run of a killed recipe still holds it
    path = recipe_of(tmp_path, {"a": {}})
    assert "or a run that a killed one left behind, is at work there" in error_of(
        command("recipe", path, "--output", tmp_path / "out")
    )
    os.close(child)
