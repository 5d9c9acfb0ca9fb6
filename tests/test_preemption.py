"""A run that is asked to stop says so, whenever it is asked; and the command that waits for it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from runs import ROOT, environment, free_port, records, run_python, tiny_config

from road_ds import train
from road_ds.common.errors import Terminated
from road_ds.data.rows import Rows
from road_ds.engine import checkpoint, milestones, results
from road_ds.engine.checkpoint import newest
from road_ds.engine.preemption import Preemption, exit_code


def ask(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_once_unless_it_is_held(number):
    with Preemption(), pytest.raises(Terminated, match=f"stopped by {number.name}"):
        ask(number)
    with Preemption() as preemption, preemption.held():
        assert preemption.reason == ""
        ask(number)
        assert preemption.reason == f"stopped by {number.name}"
        assert exit_code(preemption.reason) == 128 + number


def test_the_first_signal_is_the_reason():
    """DeepSpeed's launcher sends SIGTERM after the SIGINT of a terminal's Ctrl-C."""
    with Preemption() as preemption:
        with pytest.raises(Terminated):
            ask(signal.SIGINT)
        ask(signal.SIGTERM)  # while the status is being written: it must not cut that off
        assert preemption.reason == "stopped by SIGINT" and exit_code(preemption.reason) == 130


TWICE = """
import os, signal, sys
from road_ds.engine import preemption
preemption.HURRY = float(sys.argv[2])
with preemption.Preemption() as preempted, preempted.held():
    for _ in range(3):
        os.kill(os.getpid(), int(sys.argv[1]))
    print("saved")
"""


@pytest.mark.parametrize(
    ("number", "hurry", "code"),
    [(signal.SIGTERM, 0, 0), (signal.SIGINT, 60, 0), (signal.SIGINT, 0, -signal.SIGINT)],
    ids=["SIGTERM", "SIGINT", "SIGINT after a while"],
)
def test_what_several_send_at_once_is_one_request(number, hurry, code):
    """A scheduler asks all processes of a job, and DeepSpeed's launcher and ours ask those below them once more."""
    child = run_python("-c", TWICE, int(number), hurry)
    assert child.returncode == code and ("saved" in child.stdout) == (code == 0), child.stderr


def status(folder) -> tuple:
    found = json.loads((folder / "status.json").read_text())
    return found["status"], found["step"], found["reason"]


def at(monkeypatch, owner, name: str) -> None:
    """Has the next call of a function be asked to stop first."""
    function = getattr(owner, name)

    def asked(*args, **kwargs):
        monkeypatch.setattr(owner, name, function)
        ask()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, asked)


def test_asked_before_the_first_step(config_file, tmp_path, monkeypatch, capsys):
    at(monkeypatch, Rows, "load")
    assert train.main(["--deepspeed_config", str(config_file(tiny_config()))]) == 143
    assert status(tmp_path / "run") == ("preempted", 0, "stopped by SIGTERM")
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["the last save", "the evaluation", "the export"])
def test_asked_after_the_last_step(where, config_file, tmp_path, monkeypatch, capsys):
    """The last step is saved, never half; a resume does the rest."""
    command = ["--deepspeed_config", str(config_file(tiny_config(save_every=100)))]
    owner, name = {
        "the last save": (checkpoint, "write_manifest"),
        "the evaluation": (milestones, "evaluate"),
        "the export": (results, "export"),
    }[where]
    at(monkeypatch, owner, name)
    assert train.main(command) == 143
    assert status(tmp_path / "run") == ("preempted", 5, "stopped by SIGTERM")
    assert newest(tmp_path / "run" / "checkpoints").step == 5
    assert not (tmp_path / "run" / "results.json").exists()
    assert train.main([*command, "--resume"]) == 0
    assert status(tmp_path / "run") == ("finished", 5, "")
    assert [line["step"] for line in records(tmp_path / "run") if "loss" in line] == [1, 2, 3, 4, 5]
    assert "Traceback" not in capsys.readouterr().err


def test_the_waiting_command_ends_when_the_run_has_ended(config_file, tmp_path):
    """On Ctrl-C, which a terminal sends to all that the command has started."""
    run = tmp_path / "run"
    path = config_file(tiny_config(steps=100_000, log_every=1))
    process = subprocess.Popen(
        [sys.executable, "-m", "road_ds", "launch", "--num_gpus", "1", "--master_port", str(free_port()),
         "road_ds/train.py", "--deepspeed_config", path],
        cwd=ROOT, env=environment(), start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert status(run)[::2] == ("preempted", "stopped by SIGINT"), said
    assert newest(run / "checkpoints").step == status(run)[1] > 0
    assert process.returncode == 130 and "Traceback" not in said, said
