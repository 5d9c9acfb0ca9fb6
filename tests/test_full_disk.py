"""Runs whose disk is full: a message, nothing half-written, no traceback."""

import json
import os
import subprocess

import pytest
from forked import run_forked, start_forked
from runs import tiny_config

from road_ds.engine import checkpoint


@pytest.fixture(params=["size=1800k", "size=8m,nr_inodes=18"], ids=["bytes", "inodes"])
def small_disk(request, tmp_path):
    """A file system that holds one checkpoint of a tiny run and not the second."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_run_on_a_full_disk_says_so_and_keeps_what_it_has(small_disk, tmp_path, cache):
    config = tiny_config(steps=4, save_every=2, log_every=1, keep=1, output=str(small_disk / "run"), cache=str(cache))
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    config["zero_optimization"] = {"stage": 1}
    (small_disk / "run").mkdir()
    (tmp_path / "run.json").write_text(json.dumps(config))
    done = run_forked("road_ds/train.py", "--deepspeed_config", tmp_path / "run.json")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "step 4: the checkpoint could not be written" in done.stderr and "older checkpoints are kept" in done.stderr
    assert "error: " in done.stderr.splitlines()[-1] and "No space left on device" in done.stderr
    assert [folder.name for folder in checkpoint.committed(small_disk / "run" / "checkpoints")] == ["step-00000002"]
    assert not [name for _, folders, files in os.walk(small_disk) for name in folders + files if ".staged" in name]


def test_a_log_on_a_full_disk_ends_no_run(tmp_path, cache):
    """As a recipe's, which lies in the run folder."""
    config = tiny_config(steps=2, output=str(tmp_path / "run"), cache=str(cache))
    (tmp_path / "run.json").write_text(json.dumps(config))
    for end in ("out", "err"):
        (tmp_path / f"full.{end}").symlink_to("/dev/full")
    run = start_forked(tmp_path / "full", "road_ds/train.py", "--deepspeed_config", tmp_path / "run.json")
    run.join(240)
    assert run.exitcode == 0
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
