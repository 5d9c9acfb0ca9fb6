"""The exceptions that end a command: what a user is meant to read, and a request to stop."""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# all but tab and newline, which a terminal acts on, and half characters, which it cannot show
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
LINE, LINES = 2000, 40  # characters and lines of a message: it quotes what users bring


class RoadError(Exception):
    """A fault the user can mend: says what came, what was expected and what to change.

    Commands print it without a traceback and end with its exit code. Its text is bounded, and control characters are
    escaped: what it quotes of a user's data can be shown as it is.
    """

    code = 2

    def __init__(self, text: str):
        lines = [shortened(line) for line in legible(text).split("\n")]
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
        """Keeps the RoadError of a block, or what the system says of a file, and goes on behind it."""
        try:
            yield
        except RoadError as error:
            self._found.setdefault(str(error), error)
        except OSError as error:
            if error.filename is None:
                raise
            self.add(readable(error))

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


def first_line(error: BaseException) -> str:
    """What a library's error says, for a message of ours: its first line, and the next where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines) if lines[0].endswith(":") else lines[0]
    if isinstance(error, LookupError | TypeError | AttributeError):  # they name a thing, but not what is wrong with it
        said = f"{type(error).__name__}: {said}"
    return said if len(said) <= 300 else said[:297] + "..."


def nearest(word: str, known: Iterable[Any]) -> str:
    """`"; did you mean 'x'?"` for the known word that is most alike, the first of several, or nothing."""
    matcher = difflib.SequenceMatcher(b=word[:100])  # what users bring may be long
    alike = []
    for candidate in map(str, known):
        matcher.set_seq1(candidate)
        alike.append((matcher.ratio(), candidate))
    ratio, best = max(alike, key=lambda pair: pair[0], default=(0.0, ""))
    return f"; did you mean {best!r}?" if ratio >= 0.5 else ""


def misspelt(word: str, known: Iterable[str]) -> str:
    """As `nearest`, for values that mean something themselves: only another spelling of a known one, or one letter off.

    "not_entailment" is no misspelt "entailment", nor "2" a misspelt "1"; "1.0" is "1".
    """
    close = next((k for k in known if _spelling(k) == _spelling(word) or _one_letter_off(k, word)), None)
    return f"; did you mean {close!r}?" if close is not None else ""


def _spelling(word: str) -> Any:
    try:
        return float(word)
    except ValueError:
        return "".join(c for c in word.casefold() if c.isalnum()) or word


def _one_letter_off(one: str, other: str) -> bool:
    if min(len(one), len(other)) < 3 or abs(len(one) - len(other)) > 1 or not (one + other).replace("_", "").isalpha():
        return False
    changes = [c for c in difflib.SequenceMatcher(None, one, other).get_opcodes() if c[0] != "equal"]
    # a letter in front may be a word of its own: moral, amoral
    return (
        len(changes) == 1
        and changes[0][1] > 0
        and max(changes[0][2] - changes[0][1], changes[0][4] - changes[0][3]) == 1
    )
