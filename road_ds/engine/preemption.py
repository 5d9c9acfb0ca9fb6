"""When to stop early: a signal, or the launcher gone."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from road_ds.common import processes
from road_ds.common.errors import Terminated

HURRY = 5.0  # seconds after the first signal from which on a Ctrl-C is somebody who does not want to wait


class Preemption:
    """Whether someone asked this process to stop. Made when the process starts: the launcher may be gone later.

    Inside its block, SIGTERM and SIGINT raise Terminated; where they are held they only leave a reason, and the run saves at the next
    step boundary. The first signal is the reason, and what follows is the same request: a scheduler asks all processes of a job, and
    those above ask this one once more. Only a Ctrl-C after a while ends the process at once. A SIGTERM to the `deepspeed` command never
    reaches the ranks, so its death counts as a request too.
    """

    def __init__(self):
        self._signalled = ""
        self._at = 0.0  # when the first signal came
        self._holding = False
        self._command = processes.command()

    def __enter__(self) -> "Preemption":
        mine = threading.current_thread() is threading.main_thread()  # signals come to no other
        asked = (signal.SIGTERM, signal.SIGINT) if mine else ()
        self._before = {number: signal.signal(number, self._receive) for number in asked}
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if not self._signalled:
            self._signalled, self._at = signal.Signals(number).name, time.monotonic()
            if not self._holding:
                raise Terminated(self.reason)
        elif number == signal.SIGINT and time.monotonic() - self._at >= HURRY:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

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
        if self._command is not None and not self._command.is_running():
            return "stopped: the launcher is gone"
        return ""


def exit_code(reason: str) -> int:
    """The exit code of a process that was stopped: as the shell names a death by that signal."""
    return 128 + (signal.SIGINT if "SIGINT" in reason else signal.SIGTERM)
