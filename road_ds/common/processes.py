"""The processes of a run as DeepSpeed starts them: its command, its launcher on each host, the ranks below that."""

import contextlib
import os

import psutil

GONE = (psutil.Error, ProcessLookupError)  # it has ended meanwhile


def command() -> psutil.Process | None:
    """The `deepspeed` command that started this process as a rank; None where it is none."""
    with contextlib.suppress(*GONE):
        parent = psutil.Process(os.getppid())
        return parent.parent() if _launches(parent) else None
    return None


def session(leader: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(*GONE):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def ranks(leader: int) -> list[psutil.Process]:
    """The ranks among the living processes of a session."""
    living = session(leader)
    launchers = {process.pid for process in living if _launches(process)}
    return [process for process in living if _parent(process) in launchers]


def _launches(process: psutil.Process) -> bool:
    with contextlib.suppress(*GONE):
        return "deepspeed.launcher.launch" in process.cmdline()
    return False


def _parent(process: psutil.Process) -> int | None:
    with contextlib.suppress(*GONE):
        return process.ppid()
    return None
