"""Trials of what a run promises when things break: kills, damaged files, full disks, processes that stand still.

python tests/campaign.py --minutes N [--seed S] [--only KIND ...] [--trial NUMBER]

Draws trials at random, a share of the time for each kind, until the time is over; prints what became of them, and exits with 1
when anything was silent, lost or ended in a traceback, when a process was left over, or something hung. Not a part of the tests.
A trial is repeated by the same --seed, --only KIND --trial NUMBER.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from trials.bench import Bench
from trials.disks import disks
from trials.flips import READERS, RESUMED, flip, resume
from trials.kills import kills
from trials.outcome import Outcome, Trial
from trials.stops import stops

from road_ds.common.log import table

Kind = Callable[[Bench, int, np.random.Generator], list[Trial]]


def kinds() -> dict[str, tuple[float, Kind]]:
    """Every kind of trial, with its share of the time."""
    flips = {kind: (0.3 / len(READERS), partial(_named, flip, kind)) for kind in READERS}
    resumed = {kind: (0.2 / len(RESUMED), partial(_named, resume, kind)) for kind in RESUMED}
    others: dict[str, tuple[float, Kind]] = {
        "kill, 1 rank": (0.2, lambda bench, *rest: kills(bench, 1, *rest)),
        "kill, 2 ranks": (0.15, lambda bench, *rest: kills(bench, 2, *rest)),
        "stop, 2 ranks": (0.1, stops),
        "full disk": (0.05, disks),
    }
    return {**others, **flips, **resumed}


def _named(trial: Callable[..., list[Trial]], kind: str, bench: Bench, *rest: object) -> list[Trial]:
    return trial(bench, kind, *rest)


def campaign(
    bench: Bench, seconds: float, seed: int, chosen: dict[str, tuple[float, Kind]], first: int = 0
) -> list[Trial]:
    """The trials that fit into some seconds, at least one of each kind; the next is always of the kind that is most behind."""
    spent, numbers = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, first)
    found: list[Trial] = []
    began = time.monotonic()
    while time.monotonic() - began < seconds or not all(spent.values()):
        kind = min(chosen, key=lambda kind: spent[kind] / chosen[kind][0])
        turn = time.monotonic()
        generator = np.random.default_rng([seed, list(kinds()).index(kind), numbers[kind]])
        trials = chosen[kind][1](bench, numbers[kind], generator)
        for trial in trials:
            if not trial.outcome.promised:
                print(f"{trial.outcome}: {trial.kind} --trial {trial.number}: {trial.done}: {trial.said}", flush=True)
        found += trials
        numbers[kind] += 1
        spent[kind] += time.monotonic() - turn
    return found


def report(found: list[Trial]) -> str:
    """Counts by kind of trial and outcome."""
    seen = [outcome for outcome in Outcome if any(trial.outcome is outcome for trial in found)]
    counts = Counter((trial.kind, trial.outcome) for trial in found)
    names = list(dict.fromkeys(trial.kind for trial in found))
    rows = [(name, sum(counts[name, o] for o in seen), *(counts[name, o] for o in seen)) for name in names]
    rows.append(("all", len(found), *(sum(counts[name, o] for name in names) for o in seen)))
    return table(rows, ("trial", "in all", *seen))


def main(arguments: list[str] | None = None) -> int:
    """0 where all was as promised, else 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, required=True, help="how long trials are drawn; preparation comes on top"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(kinds()), metavar="KIND", help=", ".join(kinds()))
    parser.add_argument("--trial", type=int, help="this one of each kind alone")
    options = parser.parse_args(arguments)
    chosen = {kind: value for kind, value in kinds().items() if kind in (options.only or kinds())}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), two=any("2 ranks" in kind for kind in chosen))
        seconds = 60 * options.minutes if options.trial is None else 0
        found = campaign(bench, seconds, options.seed, chosen, options.trial or 0)
    print(report(found), flush=True)
    return 0 if all(trial.outcome.promised for trial in found) else 1


if __name__ == "__main__":
    sys.exit(main())
