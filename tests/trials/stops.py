"""Stops: one of two processes stands still; the run must end in time, leave no process, and resume to the same bits."""

import shutil
import time

import numpy as np

from trials.bench import Bench, difference
from trials.interrupted import Plan
from trials.kills import resumed
from trials.outcome import Outcome, Trial, judged
from trials.processes import leftovers

STEP_TIMEOUT, LIMIT = 5, 150  # seconds; LIMIT: of the whole command
PHASES = ("encoding", "steps", "evaluation", "saving", "export")  # before these the processes do not know of each other


def stops(bench: Bench, number: int, generator: np.random.Generator) -> list[Trial]:
    """One run of two processes of which one is stopped."""
    bench.restore()  # what it reads may be damaged by the trial before
    kind, run, cache = "stop, 2 ranks", bench.scratch / "run", bench.root / "cache-2"
    shutil.rmtree(run, ignore_errors=True)
    phase = str(generator.choice([phase for phase in bench.phases(2) if phase in PHASES]))
    plan = Plan(
        phase=phase,
        event=int(generator.integers(1, bench.events[2][phase] + 1)),
        struck=str(bench.struck),
        rank=int(generator.integers(2)) if phase in ("steps", "evaluation", "saving") else 0,
        what="stop",
    )
    done, mark = f"stop, rank {plan.rank}, {phase}, event {plan.event}", f"{kind}-{number}"
    began = time.monotonic()
    timeout = ("--set", f"road.step_timeout={STEP_TIMEOUT}")
    ended = bench.launch(plan, mark, *timeout, output=run, cache=cache, limit=LIMIT)
    seconds = time.monotonic() - began
    left = leftovers(mark, grace=30)
    if ended.code is None:
        return [Trial(kind, number, done, Outcome.HANG, f"not ended after {seconds:.0f} s")]
    if left:
        return [Trial(kind, number, done, Outcome.LEFTOVER, left[0])]
    if ended.code == 0:
        outcome, said = judged(0, ended.errors, lambda: difference(bench.truth[2], run))
        return [Trial(kind, number, f"missed: {done}", outcome, said)]
    again, lost = resumed(bench, 2, Plan(), run, cache, mark)
    if lost or again.code is None or leftovers(mark):
        return [Trial(kind, number, done, Outcome.LOST if lost else Outcome.HANG, again.errors[-300:])]
    outcome, said = judged(again.code, again.errors, lambda: difference(bench.truth[2], run))
    return [Trial(kind, number, done, Outcome.LOST if outcome is Outcome.NAMED else outcome, said)]
