"""Kills: a run is killed again and again, in any phase, and resumed; it must end with the bits of one never killed."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from trials.bench import Bench, difference
from trials.interrupted import Plan
from trials.outcome import Outcome, Trial, judged
from trials.processes import Ended, leftovers

KILLS = 3  # of one run, at most; then it is left alone
NOTHING = ("no checkpoint to resume from", "nothing to resume")


def kills(bench: Bench, ranks: int, number: int, generator: np.random.Generator) -> list[Trial]:
    """One run, killed up to KILLS times; a trial for each kill that struck. What became of the run is the last one's outcome."""
    bench.restore()  # what it reads may be damaged by the trial before
    kind = f"kill, {ranks} rank" + "s" * (ranks > 1)
    run, cache = bench.scratch / "run", bench.scratch / "cache"
    for folder in (run, cache):
        shutil.rmtree(folder, ignore_errors=True)
    trials: list[Trial] = []
    for turn in range(KILLS + 1):
        last = turn == KILLS
        plan = Plan() if last else draw(bench, ranks, generator)
        mark = f"{kind}-{number}-{turn}"
        done = f"{plan.what}, rank {plan.rank}, {plan.phase}, event {plan.event} + {1000 * plan.delay:.0f} ms"
        bench.struck.unlink(missing_ok=True)
        ended, lost = resumed(bench, ranks, plan, run, cache, mark)
        left = leftovers(mark)
        end = unkept(ended, left, lost)
        if end is None and not bench.struck.exists():  # it has come to its end
            end = judged(ended.code, ended.errors, lambda: difference(bench.truth[ranks], run))
            if end[0] is Outcome.NAMED:  # nothing was damaged: there is no reason to refuse
                end = (Outcome.LOST, end[1])
            if not trials:
                return [Trial(kind, number, f"missed: {done}", *end)]
            return [*trials[:-1], replace(trials[-1], outcome=end[0], said=end[1])]
        trials.append(Trial(kind, number, done, *(end or (Outcome.HELD, ""))))
        if end is not None:
            break
    return trials


def draw(bench: Bench, ranks: int, generator: np.random.Generator) -> Plan:
    """When to kill whom, every phase as likely as the others."""
    phase = generator.choice(bench.phases(ranks))
    return Plan(
        phase=str(phase),
        event=int(generator.integers(1, bench.events[ranks][phase] + 1)),
        delay=float(generator.choice([0, generator.uniform(0, 0.05)])),
        struck=str(bench.struck),
        rank=int(generator.integers(ranks)) if phase in ("steps", "evaluation", "saving") else 0,
        what="kill" if ranks == 1 else str(generator.choice(["kill", "kill all", "kill launcher"])),
    )


def resumed(bench: Bench, ranks: int, plan: Plan, run: Path, cache: Path, mark: str) -> tuple[Ended, bool]:
    """The run once more, as a user would: with --resume, or --overwrite where no checkpoint was made.

    Also whether a checkpoint was there and --resume says there is none.
    """

    def start(*how: str) -> Ended:
        if ranks == 1:
            return bench.fork(plan, *how, output=run, cache=cache)
        return bench.launch(plan, mark, *how, output=run, cache=cache)

    if not (run / "config.json").exists():
        return start("--overwrite"), False
    committed = list(run.glob("checkpoints/step-*"))
    ended = start("--resume")
    if ended.code == 2 and any(word in ended.errors for word in NOTHING):
        return start("--overwrite"), bool(committed)
    return ended, False


def unkept(ended: Ended, left: list[str], lost: bool) -> tuple[Outcome, str] | None:
    """What must not happen, whenever a run is killed."""
    if ended.code is None:
        return Outcome.HANG, ended.errors[-300:]
    if left:
        return Outcome.LEFTOVER, left[0]
    if lost:
        return Outcome.LOST, "a checkpoint was committed, and --resume found none"
    return None
