"""The exceptions that end a command: what a user is meant to read, and a request to stop."""

import difflib
from typing import Any


class RoadError(Exception):
    """A fault the user can mend: says what came, what was expected and what to change.

    Commands print it without a traceback and end with its exit code.
    """

    code = 2


class RankError(RoadError):
    """A fault that only one process of a run knows of: that process speaks, whichever it is."""


class Terminated(BaseException):
    """Someone asked this process to stop: SIGTERM or SIGINT."""


def nearest(word: str, known: Any) -> str:
    """`"; did you mean 'x'?"` for the known word that is most alike, or nothing."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """What a library's error says, for a message of ours: its first line, and the next where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if isinstance(error, LookupError | TypeError | AttributeError):  # they name a thing, but not what is wrong with it
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= 300 else said[:297] + "..."
