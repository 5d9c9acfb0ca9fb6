"""The exceptions that end a command: what a user is meant to read, and a request to stop."""

import difflib
import re
from typing import Any

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline; a terminal acts on them
LINE = 2000  # characters


class RoadError(Exception):
    """A fault the user can mend: says what came, what was expected and what to change.

    Commands print it without a traceback and end with its exit code. What it quotes of a user's data can be shown as it is.
    """

    code = 2

    def __str__(self) -> str:
        return "\n".join(shortened(line) for line in legible(super().__str__()).split("\n"))


class RankError(RoadError):
    """A fault that only one process of a run knows of: that process speaks, whichever it is."""


class Terminated(BaseException):
    """Someone asked this process to stop: SIGTERM or SIGINT."""


def readable(error: BaseException) -> str:
    """What a user is meant to read of an exception, "" where it is a fault of ours; of the system's errors, the file and why."""
    if isinstance(error, RoadError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return str(RoadError(f"{error.filename}: {error.strerror}"))
    return ""


def legible(text: str) -> str:
    """The text with its control characters escaped, as JSON would: colours, cursor moves and titles stay text."""
    return CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shortened(line: str) -> str:
    """The line without its middle where it is too long to be read; beginning and end, which say what to do, stay."""
    if len(line) <= LINE:
        return line
    half = LINE // 2 - 50
    return f"{line[:half]} [{len(line) - 2 * half:,} characters left out] {line[-half:]}"


def nearest(word: str, known: Any) -> str:
    """`"; did you mean 'x'?"` for the known word that is most alike, or nothing."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
