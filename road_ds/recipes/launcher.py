"""Runs as child processes: their output shown and kept, their end waited for whatever happens."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from road_ds.common.errors import Terminated
from road_ds.common.ranks import free_port

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
CHATTER = re.compile(rb"\[\d{4}-\d\d-\d\d [\d:,]+\] \[\w+\] \[")  # DeepSpeed's own lines


class Enough(Exception):
    """What a watcher raises when the run at work need not go on."""


def nobody() -> None:
    """The watcher of a run that is to end by itself."""


@dataclass(frozen=True)
class Launcher:
    """How runs are started: `options` go to `deepspeed`; `lock` is a file that stays open in the child while it lives;
    `watch` is called again and again meanwhile, and may raise Enough."""

    options: Sequence[str]
    lock: IO | None = None
    watch: Callable[[], None] = nobody

    def command(self, *arguments: str) -> list[str]:
        """The command line of a run on the processes of `options`. On one host every run gets a port of its own."""
        alone = not any(option.split("=")[0] in ("--master_port", "--hostfile", "-H") for option in self.options)
        port = ["--master_port", str(free_port())] if alone else []
        return [sys.executable, "-m", "road_ds", "launch", *self.options, *port, *arguments]

    def train(self, config: Path, overrides: Sequence[str], *more: str) -> list[str]:
        """The command line of a training."""
        return self.command(str(TRAIN), "--deepspeed_config", str(config), *sets(overrides), *more)

    def teach(self, config: Path, overrides: Sequence[str]) -> list[str]:
        """The command line that writes a run's soft targets."""
        return self.command("--module", "road_ds", "teach", "--deepspeed_config", str(config), *sets(overrides))

    def neighbours(self, config: Path, overrides: Sequence[str]) -> list[str]:
        """The command line that finds a run's neighbours; one process without a launcher."""
        return [sys.executable, "-m", "road_ds", "neighbours", "--deepspeed_config", str(config), *sets(overrides)]

    def evaluate(self, models: Sequence[str], config: Path, overrides: Sequence[str], output: Path) -> list[str]:
        """The command line that scores an ensemble; one process without a launcher."""
        module = [sys.executable, "-m", "road_ds", "evaluate", *models]
        return [*module, "--config", str(config), *sets(overrides), "--output", str(output)]

    def run(self, command: Sequence[str], folder: Path) -> tuple[int, str]:
        """Exit code of a command, and its last error line. It writes to log.txt in the run folder, which is shown here.

        When this process is asked to stop, or the watcher has seen enough, the run is asked too and waited for: its processes
        save first, as `road_ds launch` sees to. When this process is killed, the run goes on.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with terminating(), (folder / "log.txt").open("ab") as log, (folder / "log.txt").open("rb") as shown:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            shown.seek(0, os.SEEK_END)
            kept = (self.lock.fileno(),) if self.lock else ()
            child = subprocess.Popen(  # in a group of its own: a terminal's Ctrl-C is this process's to pass on
                command, stdout=log, stderr=subprocess.STDOUT, pass_fds=kept, process_group=0
            )
            try:
                last = show(shown, child, self.watch)
            except (KeyboardInterrupt, Terminated, Enough) as stop:
                child.send_signal(signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM)
                show(shown, child)
                raise
        return child.wait(), last


def sets(overrides: Sequence[str]) -> list[str]:
    """Overrides as arguments."""
    return [word for override in overrides for word in ("--set", override)]


def show(file: IO[bytes], child: subprocess.Popen, watch: Callable[[], None] = nobody) -> str:
    """The last error line, else the last line, of a child that has ended; what it says is printed."""
    last = b""
    for line in lines(file, child, watch):
        if line.strip() and not CHATTER.match(line):
            print(line.decode("utf-8", "replace"), flush=True)
            last = line if line.startswith(b"error: ") or not last.startswith(b"error: ") else last
    return last.decode("utf-8", "replace").strip()


def lines(file: IO[bytes], child: subprocess.Popen, watch: Callable[[], None]) -> Iterator[bytes]:
    """The lines that a child adds to a file, until it has ended; a progress bar's carriage return ends one too."""
    rest = b""
    while True:
        ended = child.poll() is not None  # looked at first: what was written before is read below
        chunk = file.read()
        *whole, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from whole
        if ended and not chunk:
            break
        if not chunk:
            watch()
            time.sleep(0.1)
    if rest:
        yield rest


@contextmanager
def terminating() -> Iterator[None]:
    """Raises Terminated on SIGTERM inside its block."""

    def receive(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
