"""Whose a run folder is, who is at work in it, and what a full disk does to what is written there."""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import start_forked
from runs import tiny_config

from road_ds.common.errors import RankError, RoadError
from road_ds.common.ranks import Ranks
from road_ds.config.file import load_config
from road_ds.engine.milestones import Milestones
from road_ds.engine.results import Outcome, leave
from road_ds.engine.run_folder import FOLDERS, RunFolder, full_disk_named
from road_ds.engine.selection import Best
from road_ds.train import tell


@pytest.fixture
def settings(config_file):
    """The configuration of a run whose folder is tmp_path/run, or the given one."""

    def settings(output: str | Path | None = None, **road):
        config = tiny_config(**road)
        if output is not None:
            config["road"]["output"] = str(output)
        return load_config(config_file(config))[0]

    return settings


def opened(config, resume: bool = False, overwrite: bool = False) -> RunFolder:
    return RunFolder.open(config, resume=resume, overwrite=overwrite)


@pytest.fixture
def used(settings, tmp_path):
    """The folder of a run that has ended, and its id."""
    folder = opened(settings())
    folder.begin({})
    for name in FOLDERS:
        (folder.path / name).mkdir()
        (folder.path / name / "file").write_text("of the run")
    folder.release()
    return folder


# --------------------------------------------------------------------------------------------------- whose it is


@pytest.mark.parametrize("name", [*FOLDERS, "config.json", "results.json", "metrics.jsonl"])
@pytest.mark.parametrize("asked", [{}, {"overwrite": True}, {"resume": True}])
def test_a_folder_that_no_run_made_is_left_as_it_is(settings, tmp_path, name, asked):
    """As a Hugging Face model, whose config.json is no run's."""
    file = tmp_path / "run" / (f"{name}/file" if name in FOLDERS else name)
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(RoadError, match=rf"run holds {name} and no run\.json: no run left it there"):
        opened(settings(), **asked)
    assert file.read_text() == "mine" and [p for p in (tmp_path / "run").rglob("*") if p.is_file()] == [file]


def test_empty_folders_and_other_files_are_no_hindrance(settings, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "log.txt").write_text("mine")
    opened(settings()).begin({})
    assert (tmp_path / "run" / "log.txt").read_text() == "mine"


def test_a_used_folder_is_gone_on_with_or_removed_as_asked(settings, used):
    with pytest.raises(RoadError, match="holds a run already: add --resume to go on, --overwrite to remove it"):
        opened(settings())
    again = opened(settings(), resume=True)
    assert again.run == used.run
    again.release()
    before, replaced = used.run, opened(settings(), overwrite=True)
    assert replaced.run == before and all((used.path / name / "file").exists() for name in FOLDERS)
    replaced.begin({})
    assert replaced.run != before, "the id of another run"
    assert sorted(p.name for p in used.path.iterdir()) == [".lock", "config.json", "run.json"]


def test_there_must_be_something_to_resume(settings, tmp_path):
    with pytest.raises(RoadError, match="nothing to resume: no run was started there"):
        opened(settings(), resume=True)
    opened(settings()).release()  # a run that ended before it began
    with pytest.raises(RoadError, match="nothing to resume"):
        opened(settings(), resume=True)


def test_a_start_that_failed_leaves_no_mark(settings, tmp_path):
    """What somebody puts there afterwards is not a run's."""
    opened(settings()).release()
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "weights").write_text("mine")
    for asked in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RoadError, match=r"run holds model and no run\.json: no run left it there"):
            opened(settings(), **asked)
    assert (tmp_path / "run" / "model" / "weights").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ['{"name": "other tool"}', '{"run": "before"}', '{"run": 5}', "[]", "{", f'{{"run": "{"0" * 32}", "x": 1}}']
)
@pytest.mark.parametrize("beside", ["model", None])
def test_the_mark_of_another_tool_marks_no_run(settings, tmp_path, text, beside):
    folder = tmp_path / "run"
    (folder / (beside or "")).mkdir(parents=True)
    (folder / "run.json").write_text(text)
    if beside:
        (folder / beside / "file").write_text("mine")
    for asked in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(
            RoadError, match=rf"run holds {beside or 'run.json'} and its run\.json is not as a run writes"
        ):
            opened(settings(), **asked)
    assert (folder / "run.json").read_text() == text and not (folder / ".lock").exists()
    assert not beside or (folder / beside / "file").read_text() == "mine"


def test_a_status_of_another_tool_is_not_replaced(settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"status": "mine"}')
    with pytest.raises(RoadError, match=r"holds status\.json and no run\.json"):
        opened(settings(), overwrite=True)
    with pytest.raises(RoadError, match=r"status\.json"):
        opened(settings(), overwrite=True)


@pytest.mark.parametrize("lost", ["config.json", "results.json", *FOLDERS])
def test_a_run_that_has_begun_stays_used_whatever_is_lost(settings, used, lost):
    path = used.path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    kept = sorted(used.path.rglob("*"))
    with pytest.raises(RoadError, match="holds a run already: add --resume to go on, --overwrite to remove it"):
        opened(settings())
    assert sorted(used.path.rglob("*")) == kept
    opened(settings(), resume=True).release()


def test_a_damaged_id_is_named(used):
    folder = RunFolder(used.path)
    (used.path / "run.json").write_text('{"rum": 1}')
    with pytest.raises(RoadError, match=r"run\.json: missing or damaged"):
        _ = folder.run


def test_a_new_run_removes_nothing_behind_a_link(settings, used, tmp_path):
    """Checkpoints on another disk: kept, they would be resumed as the new run's."""
    elsewhere = tmp_path / "elsewhere"
    os.replace(used.path / "checkpoints", elsewhere)
    (used.path / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(RoadError, match="checkpoints: is a link, and what it leads to is not removed: empty it"):
        opened(settings(), overwrite=True)
    assert (elsewhere / "file").exists() and (used.path / "model" / "file").exists()
    opened(settings(), resume=True).release()
    (elsewhere / "file").unlink()
    opened(settings(), overwrite=True).begin({})
    assert (used.path / "checkpoints").is_symlink()


def test_what_cannot_be_removed_is_named(used, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("road_ds.engine.run_folder.shutil.rmtree", refuse)
    with pytest.raises(RoadError, match="checkpoints: an earlier run's, cannot be removed: Permission denied"):
        used.clear()


# -------------------------------------------------------------------------------------------------- where it may be


def test_a_run_folder_holds_nothing_but_its_run(settings, tmp_path, monkeypatch):
    rows = tmp_path / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("")
    (tmp_path / "home" / "work").mkdir(parents=True)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home" / "work")
    datasets = {"inference": {"task": "inference", "train": str(rows), "dev": 0.1}}
    model = str(tmp_path / "models" / "mine")
    package = Path(sys.modules["road_ds"].__file__).resolve().parent
    for output, what in (
        ("/", "the working folder"),
        (".", "the working folder"),
        ("..", "the working folder"),
        ("~", "the working folder"),
        (package.parent, "road_ds itself"),
        (tmp_path / "data", "the train rows of inference"),
        (tmp_path / "models", "the model"),
        (model, "the model"),
    ):
        with pytest.raises(RoadError, match=f"road.output .*: {what}.* lies in it: give the run a folder of its own"):
            opened(settings(output, datasets=datasets, model=model, use=None, tasks=TASK))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RoadError, match="the home folder lies in it"):
        opened(settings("~", datasets=datasets, tasks=TASK))
    assert not (tmp_path / "home" / ".lock").exists()


TASK = {"inference": {"type": "classification", "labels": ["yes", "no"]}}


def test_teachers_that_are_none_are_named(settings):
    with pytest.raises(RoadError, match="teachers"):
        opened(settings(distill={"objective": "kd", "teachers": {"inference": 5}}))


def test_the_home_folder_may_be_written_with_a_tilde(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened(settings("~/mine")).path == tmp_path / "mine"


# ---------------------------------------------------------------------------------------------------- who is at work

HOLDING = """
import sys, time
from road_ds.engine.run_folder import RunFolder
held = RunFolder(sys.argv[1])
held.lock()
print(flush=True)
time.sleep(300)
"""


def test_one_run_at_a_time(settings, used, tmp_path):
    """The kernel releases the lock with its process, however that ends."""
    holder, said = start_forked(tmp_path / "holder", "-c", HOLDING, used.path), tmp_path / "holder.out"
    try:
        while not (said.exists() and said.read_text()):
            assert holder.is_alive()
            time.sleep(0.02)
        for asked in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(
                RoadError, match=rf"run: process {holder.pid} on .* is at work there: wait for it, stop it"
            ):
                opened(settings(), **asked)
    finally:
        holder.kill()
        holder.join()
    opened(settings(), resume=True)


def test_a_refused_start_leaves_the_folder_to_others(settings, used):
    with pytest.raises(RoadError, match="holds a run already"):
        opened(settings())
    opened(settings(), resume=True)


def written(folder: RunFolder) -> list[Callable[[], object]]:
    """All that a run does in its folder."""
    return [
        lambda: folder.record({"step": 1}),
        lambda: folder.status("finished", 1),
        lambda: folder.write("config.json", {}),
        lambda: folder.forget(lambda line: True),
        lambda: folder.begin({}),
        lambda: folder.clear(),
        lambda: leave(folder, Outcome(1, {}, {}, None), *[None] * 9),
        lambda: milestones(folder).save(1),
        lambda: milestones(folder, best=Best(folder.path / "best", folder.run)).evaluate(1),
    ]


def milestones(folder: RunFolder, best: Best | None = None) -> Milestones:
    return Milestones(None, {}, None, Ranks(0, 1, 0, torch.device("cpu"), None), folder, 0, 1, {}, 1, best)


def test_what_a_run_writes_it_can_write(settings):
    """Else the next test would pass for other reasons."""
    for number in range(6):
        folder = opened(settings(), overwrite=True)
        folder.begin({})
        written(folder)[number]()
        assert not folder.is_lost
        folder.release()


@pytest.mark.parametrize("another", [True, False])
@pytest.mark.parametrize("number", range(9))
def test_a_run_writes_only_into_the_folder_that_it_locked(settings, tmp_path, number, another, monkeypatch):
    """Removed under a live run, with or without another run there since."""
    monkeypatch.setattr("road_ds.engine.milestones.evaluate", lambda *_, **__: {})
    first = opened(settings())
    first.begin({})
    shutil.rmtree(first.path)
    second = opened(settings()) if another else None
    if second:
        second.begin({"of": "the second"})
    before = {path: path.read_text() for path in first.path.rglob("*") if path.is_file()}
    with pytest.raises(
        RoadError, match="run: is not this run's folder any more: it was removed or moved away, or anoth"
    ):
        written(first)[number]()
    tell(first, "failed", "lost")
    assert {path: path.read_text() for path in first.path.rglob("*") if path.is_file()} == before


def test_without_locks_the_id_tells_whose_a_folder_is(settings, monkeypatch):
    monkeypatch.setattr("road_ds.engine.run_folder._take", lambda *_: None)
    first = opened(settings())
    first.begin({})
    opened(settings(), overwrite=True).begin({})
    with pytest.raises(RankError, match="is not this run's folder any more"):
        first.record({"step": 1})


@pytest.mark.parametrize("name", FOLDERS)
def test_two_runs_at_once_may_not_share_what_links_lead_to(settings, tmp_path, name):
    (tmp_path / "shared").mkdir()
    runs = []
    for run in ("p", "q"):
        (tmp_path / run).mkdir()
        (tmp_path / run / name).symlink_to(tmp_path / "shared")
        runs.append(settings(tmp_path / run))
    first = opened(runs[0])
    with pytest.raises(RoadError, match=rf"q/{name}: process {os.getpid()} on .* is at work there"):
        opened(runs[1])
    with pytest.raises(RoadError, match=rf"q/{name}: process {os.getpid()} on .* is at work there"):
        opened(runs[1])  # what the refused start had locked is free again
    first.release()
    opened(runs[1]).begin({})


def test_a_run_inside_another_would_be_removed_with_it(settings, used, tmp_path):
    for inside in (used.path / "model" / "sub", used.path / "other"):
        with pytest.raises(RoadError, match=r"(sub|other): lies in the folder of another run, .*run, which may remove"):
            opened(settings(inside))
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "checkpoints").symlink_to(used.path / "checkpoints")
    with pytest.raises(RoadError, match="q: lies in the folder of another run"):
        opened(settings(tmp_path / "q"))
    assert not (used.path / "other").exists()


def test_a_file_system_without_locks_is_told_of(settings, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("road_ds.engine.run_folder.fcntl.flock", refuse)
    opened(settings()).begin({})
    assert "cannot be locked (Operation not supported)" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def full():
    """Makes every write of this process fail after so many bytes, or lets it write again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before if size is None else (size, before[1]))

    yield limit
    limit(None)


def test_metrics_without_space_wait_for_it(used, full, capsys):
    used.record({"step": 1, "loss": 1.0})
    full(40)
    used.record({"step": 2, "loss": 2.0})
    used.record({"step": 3, "loss": float("nan")})
    full(None)
    assert [line["step"] for line in used.records()] == [1], "no half line"
    used.record({"step": 4, "loss": 4.0})
    assert [line["step"] for line in used.records()] == [1, 2, 3, 4] and used.records()[2]["loss"] is None
    assert capsys.readouterr().err.count("metrics.jsonl: cannot be written: File too large") == 1


def test_a_status_without_space_is_a_warning(used, full, capsys):
    used.status("running", 0)
    full(10)
    used.status("failed", 3, "no space")
    with pytest.raises(RoadError, match=r"config\.json: cannot be written: File too large: free space"):
        used.write("config.json", {"a": "b" * 100})
    full(None)
    assert "the run is failed" in capsys.readouterr().err
    assert json.loads((used.path / "status.json").read_text())["status"] == "running"
    assert not list(used.path.glob(".*.json.*")), "no part stays"


def test_a_full_disk_anywhere_is_one_message(tmp_path):
    message = r"a\.txt: cannot be written: No space left on device: free space, then go on with --resume"
    with pytest.raises(RankError, match=message), full_disk_named(tmp_path):
        raise OSError(28, "No space left on device", "a.txt")
    with pytest.raises(PermissionError), full_disk_named(tmp_path):
        raise PermissionError(13, "Permission denied", "a.txt")


def test_lines_that_will_be_written_again_are_dropped(used):
    used.record({"step": 1, "loss": 1.0}, {"step": 1, "a/f1": 1.0}, {"step": 2, "loss": 1.0}, {"step": 2, "a/f1": 1.0})
    used.forget(lambda line: line["step"] == 2 and "loss" not in line)
    assert used.records() == [{"step": 1, "loss": 1.0}, {"step": 1, "a/f1": 1.0}, {"step": 2, "loss": 1.0}]
