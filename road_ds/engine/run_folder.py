"""A run's folder: whose it is, who is at work in it, and what a run writes into it."""

import errno
import fcntl
import json
import math
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from road_ds.common.errors import RankError, RoadError
from road_ds.common.hub import local_file
from road_ds.common.log import is_main, warn, write_json
from road_ds.config.road import RoadConfig, models_of, unlabelled_of
from road_ds.data.sources import Source
from road_ds.distillation.registry import objective_from

MARKER = "run.json"  # the run's id, written when the run begins, before anything else of it
RUN = re.compile(r"[0-9a-f]{32}")
LOCK = ".lock"
STATUS = "status.json"
FOLDERS = ("checkpoints", "model", "best", "predictions")
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FILES = ("metrics.jsonl", "results.json", "curves.png", "report.html", "config.json")


class RunFolder:
    """A run's folder on rank 0; on other ranks its writing methods do nothing.

    It is a run's by its marker alone; any other folder with files of these names is left as it is. While a run is at work,
    it holds a lock, which the kernel releases with its process. It writes only while the folder is the one that it locked.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics_file = self.path / "metrics.jsonl"
        self._locks: list[IO[str]] = []  # of the folder, then of those behind its links
        self._run: str | None = None
        self._unwritten = ""  # lines of metrics.jsonl for which there was no space
        self.was_finished = False  # when it was opened

    @classmethod
    def open(cls, config: RoadConfig, *, resume: bool, overwrite: bool, extend: bool = False) -> "RunFolder":
        """The folder of a run, new, or a used one as asked; locked until `release`.

        RoadError when it is used and nothing was asked, when it is not a run's, when another run is at work there, or when
        nothing is left that could be extended.
        """
        folder = cls(config.output or "runs/run")
        resume = resume or extend
        folder.refuse_holding(config)
        folder.refuse_nesting()
        folder.refuse_use(resume)
        try:
            folder.lock()
            folder.refuse_use(resume)  # another run may have ended between
            if folder.is_run and not resume and not overwrite:
                raise RoadError(
                    f"{folder.path} holds a run already: add --resume to go on, --overwrite to remove it, or set "
                    "road.output"
                )
            if not resume:
                folder.refuse_links()
            folder.was_finished = folder._read_status() == "finished"
            if extend and folder.is_complete:
                raise RoadError(
                    f"{folder.path} has finished and kept no checkpoint, which an extended run goes on from: a run with "
                    f"road.keep=1 keeps one; here a new run can begin with this one's model (road.model={folder.path})"
                )
        except RoadError:
            folder.release()
            raise
        return folder

    @property
    def is_complete(self) -> bool:
        """Whether the run had finished when the folder was opened, and has left no checkpoint to go on from."""
        return self.was_finished and not any(self.path.glob("checkpoints/step-*"))

    # ------------------------------------------------------------------------------------------------ whose it is

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here."""
        return _run_of(self.path) is not None

    @property
    def run(self) -> str:
        """The id of the run whose folder it is, as it was when it was first asked for. RoadError when it cannot be read."""
        self._run = self._run or _run_of(self.path)
        if self._run is None:
            raise RoadError(f"{self.path / MARKER}: missing or damaged: it held the run's id")
        return self._run

    def leftovers(self) -> list[str]:
        """What the folder holds under the names of a run's files; an empty folder is nothing."""
        return [
            name for name in (*FOLDERS, *FILES) if os.path.lexists(self.path / name) and not _is_empty(self.path / name)
        ]

    def refuse_use(self, resume: bool) -> None:
        """RoadError when what lies here is no run's, or when there is nothing to resume."""
        if self.is_run:
            return
        found = [*self.leftovers(), *(name for name in (MARKER, STATUS) if self.is_strange(name))]
        if found:
            why = f"its {MARKER} is not as a run writes it" if os.path.lexists(self.path / MARKER) else f"no {MARKER}"
            raise RoadError(
                f"{self.path} holds {found[0]} and {why}: no run left it there (or one of road_ds before 2026-11-27): "
                "set another road.output, or move it away"
            )
        if resume:
            raise RoadError(f"{self.path}: nothing to resume: no run was started there")

    def is_strange(self, name: str) -> bool:
        """Whether something of this name is here that a run's file would replace and that no run wrote."""
        if not os.path.lexists(self.path / name):
            return False
        return name == MARKER or self._read_status() is None

    def refuse_nesting(self) -> None:
        """RoadError when the folder, or what a link in it leads to, lies in another run's: that one may be overwritten."""
        own = self.path.resolve()
        for place in (own, *(path.resolve() for path in self.links())):
            for above in place.parents:
                if above != own and _run_of(above) is not None:
                    raise RoadError(
                        f"road.output {self.path}: lies in the folder of another run, {above}, which may remove it: give "
                        "the run a folder of its own"
                    )

    def refuse_holding(self, config: RoadConfig) -> None:
        """RoadError when the folder is above what is not the run's: rows, models, the working or home folder, road_ds."""
        others = {"the working folder": Path.cwd(), "the home folder": Path(os.path.expanduser("~"))}
        others["road_ds itself"] = Path(__file__).parent
        objective_from(config)  # says what is wrong with the teachers
        others |= {f"the model {name}": local_file(name) for name in models_of(config)}
        others |= {f"the neighbours of {name}": local_file(file) for name, file in unlabelled_of(config)}
        for name, spec in config.datasets.items():
            for part in ("train", "dev"):
                if getattr(spec, part) is not None and (source := Source.of(name, part, spec)).spec.format != "hub":
                    path = source.spec.path if source.spec.format == "disk" else source.source
                    others[f"the {part} rows of {name}"] = local_file(str(path))
        own = self.path.resolve()
        for what, other in others.items():
            if other.exists() and other.resolve().is_relative_to(own):
                raise RoadError(f"road.output {self.path}: {what} lies in it: give the run a folder of its own")

    def links(self) -> list[Path]:
        """Its folders that are links."""
        return [self.path / name for name in FOLDERS if (self.path / name).is_symlink()]

    def refuse_links(self) -> None:
        """RoadError when a part of the folder is a link to where something lies: a run removes nothing outside its folder."""
        for path in (self.path / name for name in self.leftovers()):
            if path.is_symlink():
                raise RoadError(f"{path}: is a link, and what it leads to is not removed: empty it, or remove the link")

    # ------------------------------------------------------------------------------------------------ who is at work

    def lock(self) -> None:
        """Takes the folder for this run, which is made where there is none, and what its links lead to.

        RoadError that names the process that has it. Other ranks than 0 only remember which folder it is.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for place in (self.path, *self.links()):
                self._locks.append((place / LOCK).open("a+", encoding="utf-8", errors="replace"))
                if is_main():
                    _take(self._locks[-1], place)
        except OSError as error:
            raise RoadError(
                f"road.output {self.path}: cannot be written: {error.strerror} ({error.filename}): set another folder"
            ) from None

    def release(self) -> None:
        """Leaves the folder to others."""
        while self._locks:
            self._locks.pop().close()

    @property
    def is_lost(self) -> bool:
        """Whether the folder is no longer the one that was locked: removed, moved away, or another run's by now."""
        if not self._locks:
            return False
        try:
            same = os.path.samestat(os.stat(self.path / LOCK), os.fstat(self._locks[0].fileno()))
        except OSError as error:
            return error.errno in GONE  # what else is wrong with it, the writing will say
        return not same or self._run not in (None, _run_of(self.path))

    def refuse_lost(self) -> None:
        """RankError when the folder is no longer this run's: what it would write belongs to nobody, or to another."""
        if self.is_lost:
            raise RankError(
                f"{self.path}: is not this run's folder any more: it was removed or moved away, or another run has its "
                "place; nothing more was written there"
            )

    def begin(self, resolved: dict[str, Any], *, anew: bool = True) -> None:
        """Writes the configuration. A new run's folder is cleared of what an earlier one left, and gets another id."""
        if is_main():
            if anew:
                self._run = None
                self.clear()
                run = uuid.uuid4().hex
                self.write(MARKER, {"run": run})
                self._run = run
            self.write("config.json", resolved)

    def clear(self) -> None:
        """Removes what an earlier run wrote here, and nothing else. RoadError when something cannot be removed."""
        if is_main():
            self.refuse_lost()
            self.refuse_links()
            try:
                for name in FOLDERS:
                    if (self.path / name).is_dir() and not (self.path / name).is_symlink():
                        shutil.rmtree(self.path / name)
                for name in FILES:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise RoadError(
                    f"{error.filename}: an earlier run's, cannot be removed: {error.strerror}: remove it"
                ) from None

    # ------------------------------------------------------------------------------------------------ what it writes

    def status(self, status: str, step: int, reason: str = "", everywhere: bool = False) -> None:
        """Writes status.json: running, finished, preempted or failed, the step, and why. A full disk is a warning."""
        if everywhere or is_main():
            self.refuse_lost()
            told = {"status": status, "step": step, "reason": reason, "pid": os.getpid()}
            try:
                write_json(self.path / STATUS, told)
            except OSError as error:
                warn(f"{self.path / STATUS}: cannot be written: {error.strerror}: the run is {status}")

    def has_ended(self) -> bool:
        """Whether another process has already said why the run ended."""
        return self._read_status() in ("failed", "preempted")

    def _read_status(self) -> str | None:
        """The run's status as its file has it, None where no run wrote that."""
        told = _read_json(self.path / STATUS)
        return (
            str(told["status"]) if isinstance(told, dict) and {*told} == {"status", "step", "reason", "pid"} else None
        )

    def write(self, name: str, value: Any) -> None:
        """Writes a JSON file into the folder. RoadError when it cannot be written."""
        if is_main():
            self.refuse_lost()
            try:
                write_json(self.path / name, value)
            except OSError as error:
                raise RoadError(
                    f"{self.path / name}: cannot be written: {error.strerror}: free space, or set road.output"
                ) from None

    def record(self, *lines: dict[str, Any]) -> None:
        """Appends lines to metrics.jsonl. Where there is no space they wait for the next time, with a warning."""
        if is_main() and lines:
            self.refuse_lost()
            waited = bool(self._unwritten)
            self._unwritten += "".join(json.dumps(_finite(line), allow_nan=False) + "\n" for line in lines)
            try:
                _append(self.metrics_file, self._unwritten)
                self._unwritten = ""
            except OSError as error:
                if not waited:
                    warn(f"{self.metrics_file}: cannot be written: {error.strerror}: its lines wait until it can")

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

    def forget(self, again: Callable[[dict[str, Any]], bool]) -> None:
        """Drops the lines of metrics.jsonl that a resumed run will write again."""
        if is_main():
            self.refuse_lost()
            kept = [line for line in self.records() if not again(line)]
            staged = self.metrics_file.with_name(".metrics.jsonl")
            try:
                staged.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
                os.replace(staged, self.metrics_file)
            except OSError as error:
                raise RoadError(f"{self.metrics_file}: cannot be written: {error.strerror}: free space") from None
            finally:
                staged.unlink(missing_ok=True)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turns a full disk, wherever a run meets it, into an error that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise RankError(
            f"{error.filename or folder}: cannot be written: {error.strerror}: free space, then go on with --resume"
        ) from None


def _take(file: IO[str], place: Path) -> None:
    """Locks a folder by its lock file for this process. RoadError that names the one that has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise RoadError(f"{place}: {holder} is at work there: wait for it, stop it, or set road.output") from None
    except OSError as error:  # a file system without locks
        warn(f"{place}: cannot be locked ({error.strerror}): see to it that no other run works there")
    try:
        file.truncate(0)
        print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
    except OSError:  # a full disk: the lock holds all the same
        pass


def _run_of(folder: Path) -> str | None:
    """The id of the run that has begun in a folder, None where none has."""
    marker = _read_json(folder / MARKER)
    run = marker.get("run") if isinstance(marker, dict) and len(marker) == 1 else None
    return run if isinstance(run, str) and RUN.fullmatch(run) else None


def _read_json(path: Path) -> Any:
    """What a JSON file holds, None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_empty(path: Path) -> bool:
    """Whether a folder holds nothing but the lock of a run that reached it by a link."""
    return path.is_dir() and os.access(path, os.R_OK) and all(entry.name == LOCK for entry in path.iterdir())


def _append(path: Path, text: str) -> None:
    """Adds a text to a file, all of it or nothing."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        data = text.encode()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(size)
            raise


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """The same line with null for numbers that JSON cannot hold."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in line.items()}
