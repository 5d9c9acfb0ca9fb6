"""When to stop early: a signal, or the launcher gone."""

import os
import signal

import psutil


class Preemption:
    """Whether someone asked this process to stop.

    Inside its block, SIGTERM and SIGINT ask politely: the run saves at the next step boundary. A second signal ends the process at once.
    A SIGTERM to the `deepspeed` command itself never reaches the ranks, so its death counts as a request too.
    """

    def __init__(self):
        self._signalled = ""
        self._launcher = _launcher()

    def __enter__(self) -> "Preemption":
        self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        self._signalled = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)

    @property
    def reason(self) -> str:
        """Why to stop, or nothing."""
        if self._signalled:
            return f"stopped by {self._signalled}"
        if self._launcher is not None and not self._launcher.is_running():
            return "stopped: the launcher is gone"
        return ""


def _launcher() -> psutil.Process | None:
    """The outer `deepspeed` process: the parent of the per-host launcher, which is the parent of this one."""
    try:
        inner = psutil.Process(os.getppid())
        if "deepspeed.launcher.launch" in " ".join(inner.cmdline()):
            return inner.parent()
    except psutil.Error:
        pass
    return None
