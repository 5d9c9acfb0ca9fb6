"""The processes of a run hear each other: where one is stopped, the others end instead of waiting for it."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PERIOD = 5.0  # seconds between two signs
GRACE = 10.0  # seconds that the others leave to rank 0, which can name the silent one
NAME = "heartbeat"


class Heartbeat:
    """A thread that gives a sign of life to the other ranks, whatever this process is at.

    Rank 0 hears all others in turn and answers. Who is silent for `patience` seconds (not: long at work) is named, with the stacks of this
    process, which then ends with exit code 1; `tell`, where it is set, gets the sentence first.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self.tell: Callable[[str], None] | None = None
        self._rank, self._others = dist.get_rank(), range(1, dist.get_world_size())
        self._group = dist.new_group(backend="gloo")
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """Stops the signs once all ranks want that."""
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._exchange():
            self._leaving.wait(min(PERIOD, self.patience / 4))

    def _exchange(self) -> bool:
        """One sign from and to everyone; whether all are leaving, or one has gone."""
        word = torch.tensor([int(self._leaving.is_set())])
        if self._rank > 0:
            there = self._passed(dist.isend, word, 0) and self._passed(dist.irecv, word, 0)
            return not there or bool(word)
        heard = torch.zeros_like(word)
        for rank in self._others:
            if not self._passed(dist.irecv, heard, rank):
                return True
            word &= heard
        return not all([self._passed(dist.isend, word, rank) for rank in self._others]) or bool(word)

    def _passed(self, pass_on: Callable[..., Any], word: torch.Tensor, rank: int) -> bool:
        """Whether a word came or was taken; not when the rank's process has ended, which DeepSpeed's launcher deals with."""
        began, limit = time.monotonic(), self.patience + (GRACE if rank == 0 else 0)
        try:
            pass_on(word, rank, group=self._group).wait(timedelta(seconds=limit))
        except RuntimeError:
            if time.monotonic() - began < limit:
                return False
            self._end(
                f"rank {rank} has given no sign of life for {limit:.0f} s (road.step_timeout): stopped, or its host is gone"
            )
        return True

    def _end(self, why: str) -> None:
        print(f"error: {why}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
        try:
            if self.tell:
                self.tell(why)
        finally:
            os._exit(1)


def leave(code: int) -> None:
    """Ends this process at once where others may be waiting for it: it has not left together with them."""
    if any(thread.name == NAME for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
