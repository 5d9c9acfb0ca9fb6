"""A run that something happens to: python interrupted.py PLAN.json ARGUMENTS-OF-TRAIN...

PLAN.json says to which rank, in which phase, at which of the phase's events (files opened, renamed or removed, micro-batches),
how long after it, and what: the process, all processes or the launcher are killed, or the process is stopped. Without an event
nothing happens, and the events of each phase are counted into the file that the plan names.
"""

import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

import psutil

from road_ds import loop, train
from road_ds.data.rows import Rows
from road_ds.engine import checkpoint, milestones, results

PHASES = ("start", "encoding", "steps", "evaluation", "saving", "export")
MARK = "ROAD_CAMPAIGN"  # an environment variable by which a trial knows its processes
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Plan:
    """What happens, to whom and when. event 0: nothing; the events of each phase are counted into `counts`."""

    phase: str = ""
    event: int = 0
    delay: float = 0.0  # seconds
    rank: int = 0
    what: str = "kill"  # kill | kill all | kill launcher | stop
    struck: str = ""  # a file that is there once it has happened
    counts: str = ""


class Phases:
    """The phase that this process is in, and how many events of each it has seen."""

    def __init__(self, happen: Callable[[str, int], None]):
        self.phase, self.counts, self._happen = "start", Counter(), happen

    def event(self) -> None:
        """Counts an event of the phase."""
        self.counts[self.phase] += 1
        self._happen(self.phase, self.counts[self.phase])

    def around(self, module: Any, name: str, phase: str, afterwards: str = "") -> None:
        """Makes a function a phase; afterwards: the phase behind it, by default the one before."""
        whole = getattr(module, name)

        def inside(*args: Any, **kwargs: Any) -> Any:
            before, self.phase = self.phase, phase
            try:
                return whole(*args, **kwargs)
            finally:
                self.phase = afterwards or before

        setattr(module, name, inside)

    def at(self, module: Any, name: str) -> None:
        """Makes each call of a function an event."""
        whole = getattr(module, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.event()
            return whole(*args, **kwargs)

        setattr(module, name, counted)


def happen(what: str, struck: str) -> None:
    """Kills or stops what is to be killed or stopped."""
    Path(struck).touch()
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        return
    own = psutil.Process()
    launchers = [process for process in own.parents() if MARK in process.environ()]
    siblings = launchers[0].children() if launchers else []
    victims = {"kill": [own], "kill launcher": launchers, "kill all": [*launchers, *siblings, own]}[what]
    for process in sorted(victims, key=lambda process: process == own):
        process.kill()


def main(plan: Plan, arguments: list[str]) -> int:
    """The exit code of a run under a plan, where it lives to have one."""

    def watch(phase: str, event: int) -> None:
        if (phase, event) == (plan.phase, plan.event) and int(os.environ.get("RANK", "0")) == plan.rank:
            if plan.delay:
                threading.Timer(plan.delay, happen, [plan.what, plan.struck]).start()
            else:
                happen(plan.what, plan.struck)

    phases = Phases(watch)
    phases.around(Rows, "load", "encoding")
    phases.around(train, "fit", "steps", afterwards="export")
    phases.around(checkpoint, "save", "saving")
    phases.around(milestones, "evaluate", "evaluation")
    phases.around(results, "export", "export")
    phases.at(loop, "step_engine")
    sys.addaudithook(lambda name, _: phases.event() if name in EVENTS else None)
    code = train.main(arguments)
    if plan.counts and int(os.environ.get("RANK", "0")) == 0:
        Path(plan.counts).write_text(json.dumps(phases.counts))
    return code


def write(plan: Plan, path: Path) -> Path:
    """Writes a plan to a file."""
    path.write_text(json.dumps(asdict(plan)))
    return path


if __name__ == "__main__":
    code = main(Plan(**json.loads(Path(sys.argv[1]).read_text())), sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
