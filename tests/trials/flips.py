"""Flips: one bit of one file changes, or the file is cut short or deleted; what is read must be what was written, or refused."""

import contextlib
import io
import json
import traceback
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from road_ds import checkpoint
from road_ds.config import load_config
from road_ds.data.features import Feature, load_features, tokenizer_hash
from road_ds.errors import RoadError
from road_ds.model import load_tokenizer
from road_ds.predictor import Predictor
from road_ds.soft_targets import Origin, SoftTargets
from road_ds.tasks import heads
from trials.bench import Bench, difference
from trials.interrupted import Plan
from trials.outcome import Outcome, Trial, judged


def cached_features(live: Path, config: Path, victim: Path) -> Any:
    """What a run reads of the data set whose cache holds the victim."""
    settings, _ = load_config(config)
    name, part, _ = victim.parent.name.rsplit("-", 2)
    task = heads(settings)[settings.head_of(name)]
    spec, tokenizer = settings.datasets[name], load_tokenizer(settings.model)
    source = load_features(name, part, spec, task, tokenizer, settings.cache)  # type: ignore[arg-type]
    cells = [
        [np.asarray(getattr(source[i], field.name)).tolist() for field in fields(Feature)] for i in range(len(source))
    ]
    return [source.manifest, np.asarray(source.lengths).tolist(), cells, list(source.examples())]


def checkpoints(live: Path, config: Path, victim: Path) -> Any:
    """The bytes of the checkpoint that a run would go on from."""
    found = checkpoint.newest(live / "run" / "checkpoints")
    return {str(path.relative_to(found.folder)): path.read_bytes() for path in _files(found.folder)}


def soft_targets(live: Path, config: Path, victim: Path) -> Any:
    """What training and `teach` read of the soft targets that hold the victim."""
    origin = Origin(
        **json.loads((Path(str(victim.parent).replace("/live/", "/kept/")) / "manifest.json").read_text())["origin"]
    )
    source = SoftTargets(victim.parent, origin, "teacher")
    return [source.teacher, source.scores().tolist(), [source[i].tolist() for i in range(origin.features)]]


def exported(live: Path, config: Path, victim: Path) -> Any:
    """The model that `predict`, `evaluate` and a next run read: weights, settings, tokenizer, task."""
    loaded = Predictor.load(str(victim.parent))
    weights = {key: value.numpy().tobytes() for key, value in loaded.model.state_dict().items()}
    return [weights, loaded.model.config.to_dict(), tokenizer_hash(loaded.tokenizer), loaded.task.model_dump()]


# By kind: the files under live/ that may be damaged, what is read then, and the state of the run.
READERS: dict[str, tuple[str, Callable[[Path, Path, Path], Any], str]] = {
    "flip, feature cache": ("cache/features/*/*", cached_features, "kept"),
    "flip, checkpoints": ("run/checkpoints/**/*", checkpoints, "kept"),
    "flip, soft targets": ("targets/*/*/*", soft_targets, "kept"),
    "flip, exported model": ("run/model/*/*", exported, "finished"),
}
RESUMED: dict[str, tuple[str, ...]] = {  # what a resumed run and its export read
    "flip, then resume": (
        "rows/*",
        "tokenizer/*",
        "cache/features/*/*",
        "targets/*/*/*",
        "teacher/model/inference/*",
        "run/**/*",
    ),
    "flip in best/, then export": ("run/best/**/*",),
}


def flip(bench: Bench, kind: str, number: int, generator: np.random.Generator) -> list[Trial]:
    """One damaged file, read by the functions that a run reads it with."""
    pattern, read, state = READERS[kind]
    live = bench.restore(state)
    victim = draw([path for path in _files(live, pattern) if path.stat().st_size], generator)
    truth = _truth(bench, kind, victim)
    done = damage(victim, live, generator)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            found, code = read(live, bench.config[1], victim), 0
    except RoadError as error:
        found, code = None, 2
        print(f"error: {error}", file=errors)
    except Exception:
        found, code = None, 1
        traceback.print_exc(file=errors)
    said = "\n".join(line for line in errors.getvalue().splitlines() if line[:1] not in ("\r", ""))
    allowed = truth if "trying the one before" not in said else _older(bench)
    return [
        Trial(kind, number, done, *judged(code, said, lambda: "" if found == allowed else "something else was read"))
    ]


def resume(bench: Bench, kind: str, number: int, generator: np.random.Generator) -> list[Trial]:
    """One damaged file of a run left off in the middle, which is then resumed to its end."""
    live = bench.restore("kept")
    victim = draw(
        [path for pattern in RESUMED[kind] for path in _files(live, pattern) if path.stat().st_size], generator
    )
    done = damage(victim, live, generator)
    ended = bench.fork(Plan(), "--resume")
    if ended.code is None:
        return [Trial(kind, number, done, Outcome.HANG, ended.errors[-300:])]
    return [
        Trial(kind, number, done, *judged(ended.code, ended.errors, lambda: difference(bench.truth[1], live / "run")))
    ]


def draw(files: list[Path], generator: np.random.Generator) -> Path:
    """A file, each as likely as the others: small ones hold what decides."""
    return files[generator.integers(len(files))]


def damage(victim: Path, live: Path, generator: np.random.Generator) -> str:
    """Flips a bit of a file (8 times in 10), cuts it short or deletes it; what was done."""
    name, data = victim.relative_to(live), bytearray(victim.read_bytes())
    how = generator.choice(["flip", "cut", "delete"], p=[0.8, 0.1, 0.1])
    place = int(generator.integers(len(data)))
    if how == "delete":
        victim.unlink()
        return f"{name} deleted"
    if how == "cut":
        victim.write_bytes(data[:place])
        return f"{name} cut to {place} bytes"
    bit = int(generator.integers(8))
    data[place] ^= 1 << bit
    victim.write_bytes(data)
    return f"{name} byte {place} bit {bit}"


def _truth(bench: Bench, kind: str, victim: Path) -> Any:
    """What is read where nothing is damaged, once for each folder."""
    _, read, _ = READERS[kind]
    return _read_once(read, bench.live, bench.config[1], victim.parent if read is not checkpoints else bench.live)


@cache
def _read_once(read: Callable[[Path, Path, Path], Any], live: Path, config: Path, folder: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return read(live, config, folder / "file")


def _older(bench: Bench) -> Any:
    """The checkpoint before the newest, undamaged."""
    folder = checkpoint.committed(bench.kept / "run" / "checkpoints")[1]
    return {str(path.relative_to(folder)): path.read_bytes() for path in _files(folder)}


def _files(folder: Path, pattern: str = "**/*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())
