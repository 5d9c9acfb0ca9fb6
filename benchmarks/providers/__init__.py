"""What the training benchmark compares, a file each; every provider trains on the rows of a turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

from providers.bare import Bare
from providers.case import CLOCKS, DTYPES, LAUNCHER, Case, Rows, Work, demand_of, wait
from providers.ours import Ours, OursTaught
from providers.trainer import HuggingFace, alone

__all__ = ["CLOCKS", "DTYPES", "LAUNCHER", "Bare", "Case", "Rows", "Work", "demand_of", "providers", "wait"]


def providers(case: Case, rows: Rows) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every provider's name and how to make it."""
    scratch = case.scratch
    for stage, mode in product(case.stages, case.modes):
        name = f"ours {mode}" + (f", ZeRO {stage}" if len(case.stages) > 1 else "")
        yield name, partial(Ours, rows, mode, stage, scratch)
        if case.teachers:
            yield f"{name}, {case.teachers} teachers", partial(OursTaught, rows, mode, stage, scratch, case.teachers)
    if rows.ranks.world_size == 1:
        yield "bare loop", partial(Bare, rows, own=False)
        yield "bare loop, our layers", partial(Bare, rows, own=True)
    for name, by_length in (("Trainer", False), ("Trainer by length", True)):
        yield name, partial(alone(rows.ranks)(HuggingFace), rows, by_length, scratch)
