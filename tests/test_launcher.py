"""A recipe's run that is asked to stop: the processes of a launcher like DeepSpeed's, whose runs take a while to save."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from runs import environment

# A runner that starts a launcher that starts two ranks, as in deepspeed.launcher: the runner dies of a signal, the launcher
# ends its ranks half a minute after one and when a rank ends badly. `WAIT`: seconds before it starts them.
RUNNER = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-u', '-m', 'deepspeed.launcher.launch']))"
LAUNCH = """
import os, signal, subprocess, sys, time
import psutil
open(f"{os.environ['FOLDER']}/launch-{os.getpid()}", "w")
time.sleep(float(os.environ["WAIT"]))
ranks = [subprocess.Popen([sys.executable, f"{os.environ['FOLDER']}/rank.py", str(n)]) for n in range(2)]
def end(number, frame):
    for rank in ranks:
        rank.terminate()
    sys.exit(1)
signal.signal(signal.SIGINT, end)
signal.signal(signal.SIGTERM, end)
while any(rank.poll() is None for rank in ranks):
    time.sleep(0.1)
sys.exit(max(rank.returncode for rank in ranks))
"""
RANK = """
import os, signal, sys, time
asked = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: asked.append(signal.Signals(number).name))
folder = os.environ["FOLDER"]
launcher = os.getppid()
open(f"{folder}/rank-{os.getpid()}", "w")
end = time.monotonic() + 60
while not asked and os.getppid() == launcher and time.monotonic() < end:
    time.sleep(0.05)
print("saving", flush=True)
time.sleep(1.5)
open(f"{folder}/saved-{sys.argv[1]}", "w").write(" ".join(asked))
sys.exit(143)
"""
RECIPE = """
import sys
from pathlib import Path
from road_ds.common.errors import Terminated
from road_ds.recipes.launcher import Launcher
try:
    launcher = Launcher([])
    launcher.run(launcher.command(), Path(sys.argv[1]))
except (KeyboardInterrupt, Terminated) as stop:
    sys.exit(type(stop).__name__)
"""


@pytest.fixture
def recipe(tmp_path):
    """Starts a recipe's run, in a process group of its own as a shell would, and waits for files to appear."""
    package = tmp_path / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    for name, text in (("runner", RUNNER), ("launch", LAUNCH), ("__init__", ""), ("../__init__", "")):
        (package / f"{name}.py").write_text(text)
    (tmp_path / "rank.py").write_text(RANK)
    started = []

    def start(pattern: str, count: int, wait: float = 0) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", RECIPE, str(tmp_path / "run")], cwd=tmp_path, process_group=0,
            env=environment(FOLDER=str(tmp_path), WAIT=str(wait)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        end = time.monotonic() + 100
        while len(list(tmp_path.glob(pattern))) < count:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        return process

    yield start
    for process in started:
        process.kill()


def left(folder: Path) -> list[int]:
    """The processes of a run that have not ended."""
    return [pid for name in ("launch", "rank") for file in folder.glob(f"{name}-*")
            if psutil.pid_exists(pid := int(file.name.split("-")[1]))]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGTERM, "Terminated"), (signal.SIGINT, "KeyboardInterrupt")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_it_ends_when_the_run_has_saved(tmp_path, recipe, number, ended):
    """No status.json stands there yet, as at the start of a run and in `teach`. Ctrl-C goes to the whole group."""
    process = recipe("rank-*", 2)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert err.strip() == ended and left(tmp_path) == []
    assert [(tmp_path / f"saved-{n}").read_text() for n in range(2)] == [number.name] * 2
    assert out.split() == ["saving", "saving"]  # what a run says while it ends is shown


def test_a_run_that_has_not_started_its_processes_starts_none(tmp_path, recipe):
    process = recipe("launch-*", 1, wait=2)
    process.terminate()
    assert process.communicate(timeout=60)[1].strip() == "Terminated"
    time.sleep(2.5)
    assert left(tmp_path) == [] and not list(tmp_path.glob("rank-*"))
