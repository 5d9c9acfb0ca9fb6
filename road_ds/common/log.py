"""What a run tells people: rank-0 lines, progress bars, tables, files written in one move."""

import codecs
import contextlib
import json
import logging
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from road_ds.common.errors import RoadError, legible

EVERY = 60.0  # seconds between two lines of a bar in a log file
SOON = 0.5  # seconds before a bar is shown
NUMBER = re.compile(r"[-+]?[\d,.]*\d[\d,.]*( ?[%KMGx]?i?B?)|-?")


def is_main() -> bool:
    """Whether this process speaks for the run (rank 0, or no launcher at all)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(*lines: str) -> None:
    """Prints lines on rank 0, above a progress bar where there is one."""
    if is_main():
        with tqdm.external_write_mode():
            print(*map(legible, lines), sep="\n", flush=True)


def warn(message: str, everywhere: bool = False) -> None:
    """Prints a warning to standard error, on rank 0 or, for what only one rank knows, everywhere."""
    if everywhere or is_main():
        with tqdm.external_write_mode():
            print(f"warning: {RoadError(message)}", file=sys.stderr, flush=True)


def print_anywhere() -> None:
    """Has this process print what its terminal has no characters for as JSON escapes, instead of failing."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("escaped", escaped)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="escaped")


class Spared:
    """A stream to a log or a terminal: what cannot be written there is left out, and the work goes on."""

    def __init__(self, stream: Any):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def spared_output() -> Iterator[None]:
    """Inside, a log on a full disk or a reader that has gone ends nothing."""
    streams = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(Spared(sys.stdout)), contextlib.redirect_stderr(Spared(sys.stderr)):
        yield
    for stream in streams:
        try:
            stream.flush()
        except OSError:  # what is left in its buffer would give the process another exit code
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def quiet_libraries() -> None:
    """Leaves only warnings of the libraries below us, so that a run's own lines can be read."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("DeepSpeed", "transformers", "datasets", "torch.distributed", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|deepspeed|transformers)\b.*")


def progress(total: int | None, description: str, unit: str, *, initial: int = 0, leave: bool = False) -> tqdm:
    """How far some work is, on rank 0: a bar with ETA, where another one stood until now; in a log file a line a minute.

    What is done at once is not shown.
    """
    how: dict[str, Any] = {"leave": leave, "dynamic_ncols": True, "mininterval": 0.1, "delay": SOON}
    if not on_screen():
        amount = "{n_fmt}" if total is None else "{n_fmt} of {total_fmt}"
        line = f"{{desc}}: {{unit}} {amount} in {{elapsed}}{'' if total is None else ', {remaining} left'}{{postfix}}"
        # miniters: the library's thread that redraws bars leaves these alone
        how = {"file": Lines(), "bar_format": line, "mininterval": EVERY, "delay": EVERY, "miniters": 1, "leave": False}
    return tqdm(
        total=total, initial=initial, desc=description, unit=unit, disable=not is_main(), position=0, **how
    )  # fmt: skip


def on_screen() -> bool:
    """Whether somebody watches: standard error is a terminal or a notebook's, where a bar can be drawn again."""
    stream = sys.stderr.stream if isinstance(sys.stderr, Spared) else sys.stderr
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")


class Lines:
    """A stream to standard error on which a bar is a line each time it is drawn."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr, flush=True)

    def flush(self) -> None: ...


def table(rows: Iterable[Iterable[Any]], header: Iterable[str]) -> str:
    """An aligned text table: numbers to the right, words to the left."""
    head, *body = [[str(cell) for cell in row] for row in [list(header), *rows]]
    columns = []
    for title, *cells in zip(head, *body, strict=True):
        width = max(map(len, [title, *cells]))
        right = bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in [title, "-" * width, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 step", "2 steps"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file in one move."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_whole(Path(path), text.encode("utf-8", "backslashreplace"))  # half a character as JSON's own escape


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file in one move: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staged.write_bytes(data)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)  # where the disk is full, a part of it


def versions() -> dict[str, str]:
    """The versions that decide on a run's numbers."""
    names = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "triton", "numpy", "road_ds")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
