"""What became of a trial."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """The first three are what is promised; the rest must not happen."""

    HELD = "held"  # the same bits, and nothing had to be said
    NAMED = "named"  # refused with one readable message and exit code 2; or, where that is the promise, a warning
    REBUILT = "rebuilt"  # the same bits, after a warning
    SILENT = "SILENT"  # other weights or scores, and exit code 0
    TRACEBACK = "traceback"  # or any other end without a message
    LEFTOVER = "leftover process"
    HANG = "hang"
    LOST = "lost"  # a committed checkpoint that cannot be resumed from
    NOT_RUN = "not run"

    @property
    def promised(self) -> bool:
        """Whether the campaign may pass over it."""
        return self in (Outcome.HELD, Outcome.NAMED, Outcome.REBUILT, Outcome.NOT_RUN)


@dataclass(frozen=True)
class Trial:
    """One trial: its kind and number, which repeat it under the same seed, what was done, and what became of it."""

    kind: str
    number: int
    done: str
    outcome: Outcome
    said: str = ""


def judged(
    code: int | None, errors: str, difference: Callable[[], str], told: str | None = None
) -> tuple[Outcome, str]:
    """The outcome of a command by its exit code, None for one that did not end, and standard error, with what it said.

    difference: in what its results differ from those of an undisturbed run, "" when in nothing; told: the path that a warning
    must name where results may differ.
    """
    if code is None:
        return Outcome.HANG, errors[-300:]
    last = (errors.strip() or "nothing was said").splitlines()[-1]
    if "Traceback" in errors or code not in (0, 2):
        return Outcome.TRACEBACK, f"exit code {code}: {last}"
    if code == 2:
        named = next((line for line in errors.splitlines() if line.startswith("error: ")), "")
        return (Outcome.NAMED, named) if named else (Outcome.TRACEBACK, f"exit code 2 without a message: {last}")
    warnings = [line for line in errors.splitlines() if line.startswith("warning: ")]
    if found := difference():
        named = [line for line in warnings if told and told in line]
        return (Outcome.NAMED, named[0]) if named else (Outcome.SILENT, found)
    return (Outcome.REBUILT, warnings[0]) if warnings else (Outcome.HELD, "")
