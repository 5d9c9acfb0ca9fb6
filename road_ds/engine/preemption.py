"""When to stop early: a signal, or the launcher gone."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from road_ds.common.errors import Terminated


class Preemption:
    """Whether someone asked this process to stop. Made when the process starts: the launcher may be gone later.

    Inside its block, SIGTERM and SIGINT raise Terminated; where they are held they only leave a reason, and the run saves at the next
    step boundary. The first signal is the reason: DeepSpeed's launcher sends a SIGTERM after the SIGINT of a terminal. Another
    of the same kind ends the process at once. A SIGTERM to the `deepspeed` command never reaches the ranks, so its death counts as a request too.
    """

    def __init__(self):
        self._signalled = ""
        self._holding = False
        self._launcher = _launcher()

    def __enter__(self) -> "Preemption":
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        if not self._signalled:
            self._signalled = signal.Signals(number).name
            if not self._holding:
                raise Terminated(self.reason)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has signals wait for whoever asks for the reason."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    @property
    def reason(self) -> str:
        """Why to stop, or nothing."""
        if self._signalled:
            return f"stopped by {self._signalled}"
        if self._launcher is not None and not self._launcher.is_running():
            return "stopped: the launcher is gone"
        return ""


def exit_code(reason: str) -> int:
    """The exit code of a process that was stopped: as the shell names a death by that signal."""
    return 128 + (signal.SIGINT if "SIGINT" in reason else signal.SIGTERM)


def _launcher() -> psutil.Process | None:
    """The outer `deepspeed` process: the parent of the per-host launcher, which is the parent of this one."""
    try:
        inner = psutil.Process(os.getppid())
        if "deepspeed.launcher.launch" in " ".join(inner.cmdline()):
            return inner.parent()
    except psutil.Error:
        pass
    return None
