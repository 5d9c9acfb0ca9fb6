"""A provider of the training benchmark in a process of its own, as its users run it."""

from __future__ import annotations

import os
import resource
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from providers import LAUNCHER, Case, Rows, Work, providers

from road_ds.log import quiet_libraries
from road_ds.ranks import Ranks


class Apart:
    """A provider beside which no other lives: its heap, its threads and what it has the allocator do are its own."""

    def __init__(self, case: Case, label: str):
        self._pipe, end = get_context("spawn").Pipe()
        get_context("spawn").Process(target=serve, args=(end, case, label), daemon=True).start()
        end.close()

    def ready(self) -> Apart:
        """Itself, once the provider is made."""
        self._pipe.recv()
        return self

    def _ask(self, what: str, *arguments: Any) -> Any:
        self._pipe.send((what, arguments))
        return self._pipe.recv()

    def turn(self, steps: range) -> Work:
        return self._ask("turn", steps)

    def split(self, step: int) -> dict[str, float]:
        return self._ask("split", step)

    def peak(self) -> int:
        """The most memory that the process has had, in bytes."""
        return self._ask("peak")

    def close(self) -> None:
        self._pipe.close()


def serve(pipe: Connection, case: Case, label: str) -> None:
    """Makes the provider and does what is asked of it, until the other end closes."""
    for name in LAUNCHER:
        os.environ.pop(name, None)
    quiet_libraries()
    provider = dict(providers(case, Rows.of(case, Ranks.start())))[label]()
    pipe.send("ready")
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        if what == "peak":
            pipe.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        else:
            pipe.send(getattr(provider, what)(*arguments))
