"""The exceptions that end a command: what a user is meant to read, and a request to stop."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE, LINES = 2000, 40  # characters and lines of a message: it quotes what users bring


class RoadError(Exception):
    """A fault the user can mend: says what came, what was expected and what to change.

    Commands print it without a traceback and end with its exit code. Its text is bounded, and control characters are
    escaped: a file must not write to the terminal.
    """

    code = 2

    def __init__(self, text: str):
        lines = [_printable(line) for line in text.split("\n")]
        if len(lines) > LINES:
            lines[LINES - 2 : -1] = [f"... ({len(lines) - LINES + 1} lines more)"]
        super().__init__("\n".join(lines))


class RankError(RoadError):
    """A fault that only one process of a run knows of: that process speaks, whichever it is."""


class Faults:
    """RoadErrors collected on the way, so that a user reads all of them at once and not one a try."""

    def __init__(self) -> None:
        self._found: dict[str, RoadError] = {}

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Keeps the RoadError of a block and goes on behind it."""
        try:
            yield
        except RoadError as error:
            self._found.setdefault(str(error), error)

    def add(self, text: str) -> None:
        """Keeps one more."""
        self._found.setdefault(text, RoadError(text))

    def all(self) -> RoadError:
        """One error with all that was kept, a line or more for each."""
        return next(iter(self._found.values())) if len(self._found) == 1 else RoadError("\n".join(self._found))

    def end(self) -> None:
        """Raises what was kept, if anything."""
        if self._found:
            raise self.all()


class Terminated(BaseException):
    """Someone sent SIGTERM to this process."""


def _printable(line: str) -> str:
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line[:LINE])
    return shown if len(line) <= LINE else shown + "..."


def nearest(word: str, known: Any) -> str:
    """`"; did you mean 'x'?"` for the known word that is most alike, or nothing."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
