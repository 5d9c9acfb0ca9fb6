"""The `deepspeed` command, except that it ends when its run has ended, and is quiet: python -m road_ds launch, then what `deepspeed` takes.

DeepSpeed's own command dies at once when it is asked to stop, and its processes save afterwards: too late where the end of the command
is the end of the container or of the job.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

import psutil

from road_ds.commands.arguments import command
from road_ds.common.processes import ranks, session

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def add(commands: Any) -> None:
    """Adds the command line: what `deepspeed` takes, its options too."""
    added = command(commands, "launch", run, add_help=False, prefix_chars="\0")
    added.add_argument("arguments", nargs=argparse.REMAINDER)


def run(options: argparse.Namespace) -> int:
    """Starts a run as `deepspeed` does, and returns when it has ended; for containers, jobs and whoever waits.

    The exit code of `deepspeed` with these arguments, once none of its processes on this host is left.

    What asks this process to stop is passed on to the training processes, which save. They are a session of their own: a terminal's Ctrl-C would
    otherwise reach DeepSpeed's launchers too, and those end what they have started.
    """
    quiet = ("--log_level", "error")  # what is asked for behind it counts
    line = [sys.executable, "-m", "deepspeed.launcher.runner", *quiet, *options.arguments]
    child = subprocess.Popen(line, start_new_session=True)

    def ask(number, frame) -> None:
        asked = signal.SIGTERM if number == signal.SIGHUP else number
        started = ranks(child.pid)
        if not started:  # nothing to save yet
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.send_signal(asked)

    for number in ASKED:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, ask)
    code = child.wait()
    while session(child.pid):
        time.sleep(0.1)
    return code if code >= 0 else 128 - code
