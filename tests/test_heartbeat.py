"""A process that is stopped ends the run, wherever it is; one that is long at work does not."""

import signal
import subprocess
import sys

import pytest
from runs import environment, free_port

RANK = """
import os, signal, sys, time
from road_ds.common.heartbeat import leave
from road_ds.common.ranks import Ranks
ranks = Ranks.start(patience=3)
ranks.barrier()
if ranks.heartbeat and ranks.rank == 1:
    ranks.heartbeat.tell = print
if ranks.rank == int(sys.argv[1]):
    time.sleep(0.4)  # between two signs
    os.kill(os.getpid(), signal.SIGSTOP)
if ranks.rank == 1:
    time.sleep(7)  # at work, as long as it takes
ranks.barrier()
if sys.argv[2] == "leave":
    ranks.leave()
leave(5)
print("left together")
"""


def ranks(stopped: int, how: str = "leave") -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of two ranks of which one, or none, is stopped."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(stopped), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    ended = [
        (process, *process.communicate(timeout=120))
        for process in processes
        if process.args[3] != str(processes.index(process))
    ]
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    return [(process.returncode, out, err) for process, out, err in ended]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_by_the_others(stopped):
    [(code, out, err)] = ranks(stopped)
    seconds = 3 if stopped == 1 else 13  # rank 0 names the others, who leave it the time
    message = (
        f"rank {stopped} has given no sign of life for {seconds} s (road.step_timeout): stopped, or its host is gone"
    )
    assert code == 1 and f"error: {message}" in err and "in barrier" in err, err
    assert (message in out) == (stopped == 0), "what `tell` is given"


def test_a_rank_that_is_long_at_work_is_waited_for():
    assert [(code, out) for code, out, _ in ranks(-1)] == [(0, "left together\n")] * 2


def test_a_rank_that_leaves_alone_does_so_at_once():
    assert [(code, out) for code, out, _ in ranks(-1, "alone")] == [(5, "")] * 2
