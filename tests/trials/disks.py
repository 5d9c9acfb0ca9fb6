"""Full disks: a run on a small file system says so and ends, or goes on; with space again it resumes to the same bits."""

import shutil
import subprocess
from pathlib import Path

import numpy as np

from trials.bench import Bench, difference
from trials.interrupted import Plan
from trials.kills import resumed
from trials.outcome import Outcome, Trial, judged


def disks(bench: Bench, number: int, generator: np.random.Generator) -> list[Trial]:
    """One run on one process whose folder, and at times its cache, lie on a file system that is too small for it."""
    bench.restore()  # what it reads may be damaged by the trial before
    place, kind = bench.root / "disk", "full disk"
    with_cache, inodes = bool(generator.integers(2)), bool(generator.integers(4) == 0)
    room = generator.uniform(0.02, 1.1)
    files = [path for path in (bench.root / "finished" / "run").rglob("*")]
    size = int(room * sum(path.stat().st_size for path in files if path.is_file()))
    limit = f"nr_inodes={max(3, int(room * len(files)))}" if inodes else f"size={max(8192, size)}"
    done = f"{limit}{', cache too' if with_cache else ''}"
    if not mount(place, limit):
        return [Trial(kind, number, done, Outcome.NOT_RUN, "this user may not mount a tmpfs")]
    try:
        run, cache = place / "run", (place if with_cache else bench.scratch) / "cache"
        shutil.rmtree(bench.scratch / "cache", ignore_errors=True)
        ended = bench.fork(Plan(), output=run, cache=cache)
        if ended.code is None:
            return [Trial(kind, number, done, Outcome.HANG, ended.errors[-300:])]
        outcome, said = judged(ended.code, ended.errors, lambda: difference(bench.truth[1], run))
        if ended.code == 0 or not outcome.promised:
            return [Trial(kind, number, done, outcome, said)]
        subprocess.run(["mount", "-o", "remount,size=1g,nr_inodes=100000", str(place)], check=True)
        again, lost = resumed(bench, 1, Plan(), run, cache, "")
        outcome, later = judged(again.code or 0, again.errors, lambda: difference(bench.truth[1], run))
        if lost or outcome is Outcome.NAMED:
            return [Trial(kind, number, done, Outcome.LOST, later)]
        return [Trial(kind, number, done, outcome if not outcome.promised else Outcome.NAMED, later or said)]
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


def mount(place: Path, limit: str) -> bool:
    """A new file system of this size; False where this user may not."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(place)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False
