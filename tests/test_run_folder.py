"""Whose a run folder is, who is at work in it, and what a full disk does to what is written there."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from runs import environment, tiny_config

from road_ds.common.errors import RankError, RoadError
from road_ds.config.file import load_config
from road_ds.engine.run_folder import FOLDERS, RunFolder, full_disk_named


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


def test_a_damaged_id_is_named(used):
    (used.path / "run.json").write_text('{"rum": 1}')
    with pytest.raises(RoadError, match=r"run\.json: missing or damaged"):
        _ = used.run


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


def test_one_run_at_a_time(settings, used):
    """The kernel releases the lock with its process, however that ends."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, used.path], stdout=subprocess.PIPE, env=environment())
    try:
        assert holder.stdout.readline() == b"\n"
        for asked in ({"resume": True}, {"overwrite": True}, {}):
            with pytest.raises(
                RoadError, match=rf"run: process {holder.pid} on .* is at work there: wait for it, stop it"
            ):
                opened(settings(), **asked)
    finally:
        holder.kill()
        holder.wait()
    opened(settings(), resume=True)


def test_a_refused_start_leaves_the_folder_to_others(settings, used):
    with pytest.raises(RoadError, match="holds a run already"):
        opened(settings())
    opened(settings(), resume=True)


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
