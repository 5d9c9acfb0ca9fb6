"""A process that is stopped ends the run, wherever it is; one that is long at work does not."""

import pytest
from forked import start_forked
from runs import free_port

RANK = """
import os, signal, sys, time
from road_ds.common import heartbeat
from road_ds.common.ranks import Ranks
heartbeat.GRACE = 3
ranks = Ranks.start(patience=3)
ranks.barrier()
if ranks.heartbeat and ranks.rank == 1:
    ranks.heartbeat.tell = lambda why: print(why, flush=True)
if ranks.rank == int(sys.argv[1]):
    time.sleep(0.4)  # between two signs
    os.kill(os.getpid(), signal.SIGSTOP)
if ranks.rank == 1:
    time.sleep(float(sys.argv[2]))
ranks.barrier()
if sys.argv[3] == "leave":
    ranks.leave()
heartbeat.leave(5)
print("left together")
"""


@pytest.fixture
def ranks(tmp_path):
    """Exit code, standard output and standard error of two ranks of which one, or none, is stopped; work: seconds, of rank 1."""

    def ranks(stopped: int, *, work: float = 0.0, how: str = "leave") -> list[tuple[int, str, str]]:
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = {
            tmp_path / str(rank): start_forked(
                tmp_path / str(rank), "-c", RANK, stopped, work, how, RANK=str(rank), LOCAL_RANK=str(rank), **group
            )
            for rank in (0, 1)
        }
        for rank, process in enumerate(started.values()):
            if rank != stopped:
                process.join(120)
        ended = [
            (process.exitcode, place.with_suffix(".out").read_text(), place.with_suffix(".err").read_text())
            for place, process in started.items()
            if process.exitcode is not None
        ]
        for process in started.values():
            process.kill()
            process.join()
        return ended

    return ranks


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_rank_is_named_by_the_others(ranks, stopped):
    [(code, out, err)] = ranks(stopped)
    seconds = 3 if stopped == 1 else 6  # rank 0 names the others, who leave it the time
    message = (
        f"rank {stopped} has given no sign of life for {seconds} s (road.step_timeout): stopped, or its host is gone"
    )
    assert code == 1 and f"error: {message}" in err and "in barrier" in err, err
    assert (message in out) == (stopped == 0), "what `tell` is given"


def test_a_rank_that_is_long_at_work_is_waited_for(ranks):
    assert [(code, out) for code, out, _ in ranks(-1, work=7)] == [(0, "left together\n")] * 2


def test_a_rank_that_leaves_alone_does_so_at_once(ranks):
    assert [(code, out) for code, out, _ in ranks(-1, how="alone")] == [(5, "")] * 2
