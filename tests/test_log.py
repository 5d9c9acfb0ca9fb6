"""What a run tells a terminal that has few characters, and what it reads of files that something has damaged."""

import subprocess
import sys

import pytest
from runs import environment

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
