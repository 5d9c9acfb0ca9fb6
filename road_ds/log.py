"""What a run tells people and files: rank-0 lines, metrics.jsonl, status.json, and the curves."""

import codecs
import io
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from road_ds.errors import RoadError, legible

NUMBER = re.compile(r"[-+]?[\d,.]*\d[\d,.]*( ?[%KMGx]?i?B?)|-?")


def is_main() -> bool:
    """Whether this process speaks for the run (rank 0, or no launcher at all)."""
    return int(os.environ.get("RANK", "0")) == 0


def say(*lines: str) -> None:
    """Prints lines on rank 0."""
    if is_main():
        print(*map(legible, lines), sep="\n", flush=True)


def warn(message: str, everywhere: bool = False) -> None:
    """Prints a warning to standard error, on rank 0 or, for what only one rank knows, everywhere."""
    if everywhere or is_main():
        print(f"warning: {RoadError(message)}", file=sys.stderr, flush=True)


def print_anywhere() -> None:
    """Has this process print what its terminal has no characters for as JSON escapes, instead of failing."""

    def escaped(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return json.dumps(error.object[error.start : error.end])[1:-1], error.end

    codecs.register_error("escaped", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="escaped")


def quiet_libraries() -> None:
    """Leaves only warnings of the libraries below us, so that a run's own lines can be read."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for name in ("DeepSpeed", "transformers", "datasets", "torch.distributed", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|deepspeed|transformers)\b.*")


def progress(total: int | None, description: str, unit: str, *, initial: int = 0, leave: bool = False) -> tqdm:
    """A progress bar with ETA on rank 0; into a file it writes seldom."""
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        leave=leave,
        disable=not is_main(),
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 15,
    )


def table(rows: Iterable[Iterable[Any]], header: Iterable[str]) -> str:
    """An aligned text table: numbers to the right, words to the left."""
    head, *body = [[str(cell) for cell in row] for row in [list(header), *rows]]
    columns = []
    for title, *cells in zip(head, *body, strict=True):
        width = max(map(len, [title, *cells]))
        right = bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in [title, "-" * width, *cells]])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """The same line with null for numbers that JSON cannot hold."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: "1 step", "2 steps"."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file in one move: readers see the old file or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staged, path)


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


class RunFolder:
    """A run's folder on rank 0; on other ranks its writing methods do nothing."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics_file = self.path / "metrics.jsonl"

    def status(self, status: str, step: int, reason: str = "", everywhere: bool = False) -> None:
        """Writes status.json: running, finished, preempted or failed, the step, and why."""
        if everywhere or is_main():
            write_json(
                self.path / "status.json", {"status": status, "step": step, "reason": reason, "pid": os.getpid()}
            )

    def clear(self) -> None:
        """Removes what an earlier run wrote here, and nothing else."""
        if is_main():
            for name in ("checkpoints", "model", "best", "predictions"):
                shutil.rmtree(self.path / name, ignore_errors=True)
            for name in ("config.json", "metrics.jsonl", "results.json", "curves.png"):
                (self.path / name).unlink(missing_ok=True)

    def has_ended(self) -> bool:
        """Whether another process has already said why the run ended."""
        try:
            status = json.loads((self.path / "status.json").read_text(encoding="utf-8"))["status"]
            return status in ("failed", "preempted")
        except (OSError, ValueError, KeyError):
            return False

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file into the folder."""
        if is_main():
            write_json(self.path / name, value)

    def record(self, *lines: dict[str, Any]) -> None:
        """Appends lines to metrics.jsonl."""
        if is_main() and lines:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines)

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, oldest first; what no run has written whole (a last line, cut off) is left out."""
        try:
            text = self.metrics_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RoadError(f"{self.metrics_file}: cannot be read: {error.strerror}: move it away") from None
        lines = []
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                lines.append(record)
        return lines

    def last_step(self) -> int:
        """The newest step that metrics.jsonl tells of, 0 before the first."""
        try:
            return max((line["step"] for line in self.records()), default=0)
        except RoadError:
            return 0

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps that a resumed run will do again."""
        if is_main():
            kept = [line for line in self.records() if line["step"] <= step]
            staged = self.metrics_file.with_name(".metrics.jsonl")
            staged.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
            os.replace(staged, self.metrics_file)


def plot_curves(records: list[dict[str, Any]], metrics: list[str], path: str | Path) -> None:
    """Draws a run's metrics.jsonl: loss per data set, learning rate, and the given dev metrics over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def curve(key: str) -> list[tuple[int, float]]:
        return [(record["step"], record[key]) for record in records if record.get(key) is not None]

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates, scores = figure.subplots(1, 3)
    for key in sorted({key for record in records for key in record if key.startswith("loss/")}):
        steps, values = zip(*curve(key), strict=True)
        span = max(1, len(values) // 50)
        smooth = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - span) : i + 1])]
        losses.plot(steps, smooth, label=key.removeprefix("loss/"), linewidth=1.2)
    if curve("lr"):
        rates.plot(*zip(*curve("lr"), strict=True))
    for key in metrics:
        if curve(key):
            scores.plot(*zip(*curve(key), strict=True), marker="o", markersize=3, label=key)
    for axes, title in ((losses, "training loss"), (rates, "learning rate (head)"), (scores, "dev metrics")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
