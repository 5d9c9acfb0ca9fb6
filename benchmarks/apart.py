"""A provider of a benchmark in a process of its own, as its users run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from providers import LAUNCHER, Case, Rows, Work, providers

from road_ds.common.log import quiet_libraries
from road_ds.common.ranks import Ranks

IMPORTED = ["road_ds.train", "datasets", "transformers.models.electra.modeling_electra", "transformers.trainer"]


def processes() -> Any:
    """Where the providers' processes come from.

    They are forked from one that has imported all of it and done nothing else; where there is a GPU each begins anew: imports
    look for its driver, which a forked process then could not use.
    """
    if torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


class Apart:
    """A provider beside which no other lives: its heap, its threads and what it has the allocator do are its own."""

    def __init__(self, make: Callable[[], Any], label: str):
        self._label = label
        context = processes()
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=serve, args=(end, make), daemon=True)
        self._process.start()
        end.close()

    def ready(self) -> Apart:
        """Itself, once the provider is made."""
        self._answer()
        return self

    def ask(self, what: str, *arguments: Any) -> Any:
        """What a method of the provider returns."""
        self._pipe.send((what, arguments))
        return self._answer()

    def turn(self, steps: range) -> Work:
        return self.ask("turn", steps)

    def split(self, step: int) -> dict[str, float]:
        return self.ask("split", step)

    def peak(self) -> int:
        """The most memory that the process has had, in bytes, with what it has of the libraries."""
        return self.ask("peak")

    def close(self) -> None:
        """Returns when the process is gone: it would disturb the next."""
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            raise SystemExit(f"{self._label}: its process ended with {self._process.exitcode}") from None


def provider_of(case: Case, label: str) -> Any:
    """A provider of the training benchmark, by its name."""
    return dict(providers(case, Rows.of(case, Ranks.start())))[label]()


def serve(pipe: Connection, make: Callable[[], Any]) -> None:
    """Makes the provider and does what is asked of it, until the other end closes."""
    for name in LAUNCHER:
        os.environ.pop(name, None)
    quiet_libraries()
    provider = make()
    pipe.send("ready")
    while True:
        try:
            what, arguments = pipe.recv()
        except EOFError:
            return
        if what == "peak":
            pipe.send(resident())
        else:
            pipe.send(getattr(provider, what)(*arguments))


def resident() -> int:
    """The most bytes of memory that this process has had; ru_maxrss would begin with its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
