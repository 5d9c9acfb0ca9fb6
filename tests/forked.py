"""Commands in processes of their own that need not import anything: forked from one that has imported it all."""

import atexit
import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest.mock import patch

from runs import ROOT, environment, free_port

from road_ds.recipes.launcher import Launcher

IMPORTED = [
    "deepspeed", "matplotlib.backends.backend_agg", "setuptools", "transformers.models.bert.tokenization_bert",
    "transformers.models.electra.modeling_electra", "road_ds.train", "road_ds.engine.plan", "road_ds.distillation.teach",
    "trials.interrupted", "trials.flips", "prepared",
]  # fmt: skip


def forkserver() -> Any:
    """Where such processes come from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # PYTHONPATH is the only way to the server's sys.path; killed processes leave semaphores, which it would warn of.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    surroundings = environment(PYTHONPATH=os.pathsep.join(path), PYTHONWARNINGS=quiet)
    with patch.dict(os.environ, surroundings, clear=True):
        ensure_running()
    return context


def start_forked(place: Path, *arguments: object, **more: str) -> Any:
    """A process that does what `python ARGUMENTS` does (a script, -m and a module, -c and code); it writes to PLACE.out and PLACE.err."""
    process = forkserver().Process(target=_as_script, args=(place, environment(**more), [*map(str, arguments)]))
    process.start()
    return process


def run_forked(*arguments: object, ranks: int = 1, timeout: float = 240, **more: str) -> subprocess.CompletedProcess:
    """How `python ARGUMENTS` ended, on several ranks without a launcher.

    The first rank that fails ends the others, as with a launcher; the return code is its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(rank) for rank in range(ranks)]
        group = {
            "WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        found = []
        for rank, place in enumerate(places):
            member = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            found.append(start_forked(place, *arguments, **more, **member))
        code = _ended(found, time.monotonic() + timeout)
        if code is None:
            raise subprocess.TimeoutExpired([*map(str, arguments)], timeout)
        out, err = (
            "".join(place.with_suffix(end).read_text(errors="replace") for place in places) for end in (".out", ".err")
        )
    return subprocess.CompletedProcess([*map(str, arguments)], code, out, err)


class Forked(Launcher):
    """A launcher of recipes and sweeps whose runs are forked, on one process."""

    def command(self, *arguments: str) -> list[str]:
        return ["-m", *arguments[1:]] if arguments[0] == "--module" else [*arguments]

    def run(self, command: Sequence[str], folder: Path) -> tuple[int, str]:
        done = run_forked(*command[command[0] == sys.executable :])
        said = done.stdout + done.stderr
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            log.write(f"$ {shlex.join(command)}\n{said}")
        print(said)
        return done.returncode, said.strip().rpartition("\n")[2]


def _ended(processes: list[Any], until: float) -> int | None:
    """The return code of processes that belong together, None for those that did not end in time; they are killed."""
    code, running = 0, list(processes)
    while running:
        ready = wait([process.sentinel for process in running], until - time.monotonic())
        for process in [process for process in running if process.sentinel in ready]:
            process.join()
            running.remove(process)
            if code == 0 and process.exitcode:
                code = process.exitcode
                for other in running:
                    other.terminate()
        if not ready:
            for process in running:
                process.kill()
                process.join()
            return None
    return code


def _as_script(place: Path, surroundings: dict[str, str], arguments: list[str]) -> None:
    """What the interpreter would do with these arguments."""
    for number, end in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(place.with_suffix(end), os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(surroundings)
    os.chdir(ROOT)
    code: Any = 0
    try:
        if arguments[0] == "-m":
            sys.argv, sys.path[:0] = [arguments[1], *arguments[2:]], [str(ROOT)]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv, sys.path[:0] = ["-c", *arguments[2:]], [str(ROOT)]
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv, sys.path[:0] = arguments, [str(Path(arguments[0]).resolve().parent)]
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    _leave(code)


def _leave(code: Any) -> None:
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
