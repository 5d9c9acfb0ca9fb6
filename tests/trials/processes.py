"""Runs as processes: forked from one that has imported everything, or through the launcher; and what they leave behind."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from forked import forkserver
from runs import ROOT, environment, free_port

from trials.interrupted import MARK

LIMIT = 240  # seconds that a command may take
GRACE = 60  # seconds that a killed run's processes may take to end


@dataclass(frozen=True)
class Ended:
    """How a command ended; code is None where it had to be killed, negative where a signal ended it."""

    code: int | None
    errors: str


def forked(work: Callable[..., int], *arguments: Any, log: Path, limit: float = LIMIT) -> Ended:
    """`work` in a process of its own, its exit code what `work` returns."""
    process = forkserver().Process(target=_into_log, args=(log, work, arguments))
    process.start()
    process.join(limit)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    return Ended(None if late else process.exitcode, log.read_text(errors="replace") if log.exists() else "")


def _into_log(log: Path, work: Callable[..., int], arguments: tuple) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    code = work(*arguments)
    sys.stderr.flush()
    os._exit(code)


def launched(script: Path, *arguments: Any, ranks: int, mark: str, log: Path, limit: float = LIMIT) -> Ended:
    """A script through the `deepspeed` launcher."""
    command = [
        str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port()),
        "--no_local_rank", str(script), *map(str, arguments),
    ]  # fmt: skip
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**{MARK: mark}), stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            process.kill()
            process.wait()
    return Ended(code, log.read_text(errors="replace"))


def leftovers(mark: str, grace: float = GRACE) -> list[str]:
    """The command lines of a trial's processes that do not end; they are killed then."""
    until = time.monotonic() + grace
    while (left := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    return [" ".join(_command_line(process)) or str(process.pid) for process in left]


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
