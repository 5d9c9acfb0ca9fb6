"""What a run tells a terminal that has few characters, and what it reads of files that something has damaged."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from runs import environment

from road_ds.common import log
from road_ds.common.errors import RoadError
from road_ds.engine.run_folder import RunFolder

GOOD = b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n'


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe\x00{}\n", b"5\n", b"{}\n", b'{"step": "x"}\n', b"\0" * 20 + b"\n", b"[" * 100_000 + b"\n", b'{"step": ' + b"9" * 5000 + b"}\n"],
    ids=["bytes", "number", "no step", "step", "zeros", "deep", "long number"],
)  # fmt: skip
def test_damaged_lines_of_metrics_are_left_out(damage, tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_bytes(damage + GOOD + b'{"step": 3, "lo')
    assert [line["loss"] for line in folder.records()] == [2.5, 2.0] and folder.last_step() == 2
    folder.forget(lambda line: line["step"] > 1)
    assert [line["step"] for line in folder.records()] == [1]


def test_metrics_that_are_a_folder_are_named(tmp_path):
    folder = RunFolder(tmp_path)
    folder.metrics_file.mkdir()
    with pytest.raises(RoadError, match=r"metrics\.jsonl: cannot be read: Is a directory: move it away"):
        folder.forget(lambda line: line["step"] > 1)
    assert folder.last_step() == 0


BARS = """
import time
from road_ds.common import log
log.EVERY = log.SOON = 0.05
bar = log.progress(3, "training", "step", leave=True)
for step in range(3):
    time.sleep(0.12)
    bar.set_postfix_str(f"loss {step}.5", refresh=False)
    bar.update()
    if step == 1:
        bar.clear()
        inner = log.progress(2, "evaluating", "batch")
        inner.update(1)
        time.sleep(0.12)
        inner.update(1)
        inner.close()
        log.say("scores")
        log.warn("look")
bar.close()
"""


def test_a_log_file_gets_lines_and_no_bar():
    done = subprocess.run([sys.executable, "-c", BARS], env=environment(), capture_output=True, text=True)
    assert done.stdout == "scores\n"
    said = done.stderr.splitlines()
    assert [line.split(" in ")[0] for line in said] == [
        "training: step 1 of 3", "training: step 2 of 3", "evaluating: batch 2 of 2", "warning: look", "training: step 3 of 3",
    ]  # fmt: skip
    assert said[0].endswith("left, loss 0.5") and not {"\r", "\x1b"} & {*done.stderr}


def test_a_terminal_has_one_bar_at_a_time():
    """All are drawn on one line: none goes below another, and what is said stands above, on lines of its own."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-c", BARS], environment(COLUMNS="80"))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 4096):
            shown += part
    os.waitpid(pid, 0)
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in shown.decode().split("\n")]
    assert lines[:2] == ["scores", "warning: look"] and lines[2].startswith("training: 100%") and lines[3:] == [""]
    assert "evaluating: 100%" in shown.decode() and "\x1b" not in shown.decode()


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_notebook_has_a_bar_of_a_run_and_none_of_what_is_done_at_once(seconds, monkeypatch):
    class OutStream(io.StringIO):
        __module__ = "ipykernel.iostream"

    shown = OutStream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(log, "SOON", seconds)
    with log.spared_output(), log.progress(3, "training", "step", leave=True) as bar:
        bar.update(3)
    said = shown.getvalue().rpartition("\r")[2]
    assert said.startswith("training: 100%") if not seconds else not said


def test_a_terminal_without_the_characters_gets_escapes():
    code = "import json; from road_ds.common.log import print_anywhere; print_anywhere(); print(json.dumps('é · 🇳 \\udc80', ensure_ascii=False))"
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(PYTHONIOENCODING=encoding),
            capture_output=True,
            encoding="utf-8",
        )
        shown = '"\\u00e9 \\u00b7 \\ud83c\\uddf3 \\udc80"' if encoding == "ascii" else '"é · 🇳 \\udc80"'
        assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr
