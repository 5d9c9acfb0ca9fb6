"""Flips: one bit of one file changes, or the file is cut short or deleted; what is read must be what was written, or refused."""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.common.digest import text_sha256
from road_ds.common.errors import RoadError
from road_ds.config.file import load_config
from road_ds.data.batch import Feature
from road_ds.data.features import load_features
from road_ds.data.tokenizer import tokenizer_hash
from road_ds.distillation.soft_targets import Origin, SoftTargets
from road_ds.engine import checkpoint
from road_ds.models.configuration import load_tokenizer
from road_ds.models.predictor import Predictor
from road_ds.tasks.registry import heads
from trials.bench import Bench, difference
from trials.interrupted import Plan
from trials.outcome import Trial, judged
from trials.processes import forked


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


def older(live: Path, config: Path, victim: Path) -> Any:
    """The bytes of the checkpoint before the newest, as it was kept."""
    folder = checkpoint.committed(live.parent / "kept" / "run" / "checkpoints")[1]
    return {str(path.relative_to(folder)): path.read_bytes() for path in _files(folder)}


def soft_targets(live: Path, config: Path, victim: Path) -> Any:
    """What training and `teach` read of the soft targets that hold the victim."""
    kept = live.parent / "kept" / victim.parent.relative_to(live) / "manifest.json"
    origin = Origin(**json.loads(kept.read_text())["origin"])
    source = SoftTargets(victim.parent, origin, "teacher")
    return [source.teacher, source.scores().tolist(), [source[i].tolist() for i in range(origin.features)]]


def exported(live: Path, config: Path, victim: Path) -> Any:
    """The model that `predict`, `evaluate` and a next run read: weights, settings, tokenizer, task."""
    loaded = Predictor.load(str(victim.parent))
    weights = {key: value.numpy().tobytes() for key, value in loaded.model.state_dict().items()}
    return [weights, loaded.model.config.to_dict(), tokenizer_hash(loaded.tokenizer), loaded.task.model_dump()]


def unverified(live: Path, config: Path, victim: Path) -> Any:
    """The control: checkpoints as they would be read if nobody compared their hashes."""
    checkpoint.verify = lambda folder: checkpoint.Checkpoint(folder, {})  # type: ignore[arg-type]
    return checkpoints(live, config, victim)


# By kind: the files under live/ that may be damaged, what is read then, and the state of the run.
Reader = Callable[[Path, Path, Path], Any]
READERS: dict[str, tuple[str, Reader, str]] = {
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
FOUND = "the hash of what was read: "


def flip(bench: Bench, kind: str, number: int, generator: np.random.Generator) -> list[Trial]:
    """One damaged file, read by the functions that a run reads it with."""
    pattern, reader, state = READERS[kind]
    live = bench.restore(state)
    victim = draw([path for path in _files(live, pattern) if path.stat().st_size], generator)
    truth = _truth(bench, reader, victim)
    done = damage(victim, live, generator)
    ended = forked(read, reader, live, bench.config[1], victim, log=bench.log)
    said, _, found = ended.errors.partition(FOUND)
    if "trying the one before" in said:
        truth = _truth(bench, older, victim)
    # An exported model is the user's, who may change it: it is read, and named.
    told = victim.name if reader is exported else None
    different = "" if found == truth else "something else was read"
    return [Trial(kind, number, done, *judged(ended.code, said, lambda: different, told))]


def read(reader: Reader, live: Path, config: Path, victim: Path) -> int:
    """The exit code that a command which reads so would have; the hash of what was read goes to standard error."""
    try:
        found = reader(live, config, victim)
    except RoadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    print(FOUND + text_sha256(repr(found)), end="", file=sys.stderr)
    return 0


def resume(bench: Bench, kind: str, number: int, generator: np.random.Generator) -> list[Trial]:
    """One damaged file of a run left off in the middle, which is then resumed to its end."""
    live = bench.restore("kept")
    victim = draw(
        [path for pattern in RESUMED[kind] for path in _files(live, pattern) if path.stat().st_size], generator
    )
    done = damage(victim, live, generator)
    ended = bench.fork(Plan(), "--resume")
    told = (
        str(victim.parent) if "best" in victim.parts else None
    )  # a lost best is told of, and the next one is the best
    outcome = judged(ended.code, ended.errors, lambda: difference(bench.truth[1], live / "run"), told)
    return [Trial(kind, number, done, *outcome)]


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


def _truth(bench: Bench, reader: Reader, victim: Path) -> str:
    """The hash of what is read where nothing is damaged, once for each folder."""
    place = (reader, victim.parent if reader in (cached_features, soft_targets, exported) else None)
    if place not in bench.seen:
        ended = forked(read, reader, bench.live, bench.config[1], victim, log=bench.log)
        assert ended.code == 0, ended.errors
        bench.seen[place] = ended.errors.partition(FOUND)[2]
    return bench.seen[place]


def _files(folder: Path, pattern: str = "**/*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())
