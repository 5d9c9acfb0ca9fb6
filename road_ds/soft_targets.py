"""Soft targets on disk: a teacher's raw logits for every training row of a data set, and what they were made from.

A folder holds shards of rows (Arrow, each hashed) and, once all are there, a manifest. Teachers are never combined on disk:
temperature, weights and the choice of teachers can change without asking a teacher again.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from road_ds.data.features import CHUNK, ArrowRows
from road_ds.digest import file_sha256
from road_ds.errors import RoadError
from road_ds.log import write_json

SHARD = 4 * CHUNK  # features per file, the unit of work of a rank
MANIFEST, BEGUN = "manifest.json", "begun.json"


@dataclass(frozen=True)
class Origin:
    """What soft targets depend on. labels: the classes in the order stored, None where they have no names."""

    dataset: str
    teacher: str  # hash of its weights and configuration
    rows: str  # hash of the rows in order
    features: int
    tokenizer: str  # hash of the teacher's
    windows: dict[str, int]  # the task's lengths
    labels: list[str] | None
    dtype: str

    def differences(self, other: "Origin") -> list[str]:
        """In what two origins differ, in words; the order of labels does not count."""
        words = {
            "dataset": "data set",
            "teacher": "teacher (its weights or configuration have changed)",
            "rows": "rows, or another order of them",
            "features": "number of windows",
            "tokenizer": "tokenizer",
            "windows": "lengths",
            "labels": "label names",
            "dtype": "dtype",
        }
        found = []
        for key, word in words.items():
            was, now = getattr(self, key), getattr(other, key)
            if key == "labels" and was and now:
                was, now = sorted(was), sorted(now)
            if was != now:
                shown = key in ("features", "windows", "labels", "dtype", "dataset")
                found.append(f"{word} ({was} there, {now} now)" if shown else word)
        return found


class SoftTargets:
    """The soft targets of one teacher for one data set, mapped into memory."""

    def __init__(self, folder: Path, origin: Origin, teacher: str, verify: bool = True, config: str = "FILE"):
        """Opens and verifies a folder. RoadError that names what is missing, damaged or made from something else.

        Labels in another order are put into that of `origin`. verify: compare every shard's hash and look for numbers that
        are not finite; without, sizes only. config: the run's file, for the command that makes them.
        """
        again = f"; run `python -m road_ds teach --deepspeed_config {config}`"
        about = f"soft targets of {teacher} for {origin.dataset}"
        manifest = read_json(folder / MANIFEST)
        if manifest is None:
            state = "are not finished" if folder.exists() else "are not there"
            raise RoadError(f"{folder}: the {about} {state}{again}")
        try:
            made = Origin(**manifest["origin"])
            shards = manifest["shards"]
        except (KeyError, TypeError):
            raise RoadError(f"{folder / MANIFEST}: the file is damaged{again}") from None
        if different := made.differences(origin):
            raise RoadError(f"{folder}: the {about} were made from another {', another '.join(different)}{again}")
        for shard in shards:
            if fault := damage(folder / shard["file"], shard, verify):
                raise RoadError(f"{folder / shard['file']}: {fault}{again}")
        if len(shards) != len(shard_rows(origin)):
            raise RoadError(
                f"{folder / MANIFEST}: the file is damaged: it names {len(shards)} of {len(shard_rows(origin))} shards{again}"
            )
        self.folder, self.dtype, self.teacher = folder, np.dtype(origin.dtype), made.teacher
        self._shards = [ArrowRows(folder / shard["file"]) for shard in shards]
        self._order = order_of(made.labels, origin.labels)

    def __getitem__(self, feature: int) -> np.ndarray:
        """The logits of a feature, flat: rows x classes without padding."""
        shard, offset = divmod(int(feature), SHARD)
        values = self._shards[shard][offset]["logits"]
        return values if self._order is None else values[self._order]

    def scores(self) -> np.ndarray:
        """Per feature 1 where the teacher is right and 0 where it is not; for a regression its squared error."""
        return np.concatenate([np.load(part) for part in sorted(self.folder.glob("*.scores.npy"))])


def order_of(there: list[str] | None, wanted: list[str] | None) -> list[int] | None:
    """The positions that bring label names into the wanted order; None where they stand in it."""
    if there is None or wanted is None or there == wanted:
        return None
    return [there.index(label) for label in wanted]


def is_whole(folder: Path, origin: Origin) -> bool:
    """Whether a folder holds finished soft targets of just this origin, every shard as it was written."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or manifest.get("origin") != asdict(origin):
        return False
    return all(has_shard(folder, number) for number in range(len(shard_rows(origin))))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """RoadError where a folder of soft targets cannot be written."""
    try:
        yield
    except OSError as error:
        raise RoadError(
            f"{folder}: cannot be written: {error.strerror or error}: free space, or set road.distill.cache"
        ) from None


def begin(folder: Path, origin: Origin) -> list[str]:
    """Makes a folder ready for shards of an origin: those of the same origin stay, others are removed.

    In what the removed ones differed, in words; empty where nothing was removed. RoadError where it cannot be written, as
    in what follows.
    """
    begun = read_json(folder / BEGUN)
    if begun == asdict(origin):
        return []
    different: list[str] = []
    if folder.exists():
        try:
            different = Origin(**(begun or {})).differences(origin) or ["order of labels"]
        except TypeError:
            different = ["origin"]
    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)
        write_json(folder / BEGUN, asdict(origin))
    return different


def shard_rows(origin: Origin) -> list[range]:
    """The features of each shard."""
    return [range(first, min(first + SHARD, origin.features)) for first in range(0, origin.features, SHARD)]


def has_shard(folder: Path, number: int) -> bool:
    """Whether a shard has been written whole."""
    record = read_json(folder / f"{number:05}.json")
    if record is None or not (folder / f"{number:05}.scores.npy").exists():
        return False
    return damage(folder / record["file"], record, verify=True) == ""


def write_shard(folder: Path, number: int, logits: Sequence[np.ndarray], scores: np.ndarray, origin: Origin) -> None:
    """Writes one shard; logits: per feature, any shape. RoadError for numbers that are not finite, in this dtype too."""
    flat = [values.ravel() for values in logits]
    bounds = np.concatenate([[0], np.cumsum([len(values) for values in flat])])
    with np.errstate(over="ignore"):
        values = np.concatenate(flat).astype(origin.dtype)
    if not np.isfinite(values).all():
        feature = number * SHARD + int(np.searchsorted(bounds, np.flatnonzero(~np.isfinite(values))[0], "right")) - 1
        whole = all(np.isfinite(part).all() for part in flat)
        why = f"too large for {origin.dtype}: set road.distill.dtype to float32" if whole else "not finite"
        raise RoadError(f"{origin.dataset}: the teacher's logits of feature {feature} are {why}; nothing was stored")
    path = folder / f"{number:05}.arrow"
    staged = path.with_suffix(f".{os.getpid()}")
    schema = pa.schema({"logits": pa.list_(pa.from_numpy_dtype(np.dtype(origin.dtype)))})
    with writing(folder):
        with pa.OSFile(str(staged), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for first in range(0, len(flat), CHUNK):
                part = bounds[first : first + CHUNK + 1]
                rows = pa.ListArray.from_arrays(
                    pa.array(part - part[0], pa.int32()), pa.array(values[part[0] : part[-1]]), type=schema.types[0]
                )
                writer.write_batch(pa.record_batch([rows], schema=schema))
        np.save(folder / f"{number:05}.scores.npy", scores.astype(np.float32))
        os.replace(staged, path)
        write_json(
            folder / f"{number:05}.json", {"file": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}
        )


def finish(folder: Path, origin: Origin, name: str) -> None:
    """Writes the manifest over all shards: from now on the folder counts."""
    shards = [read_json(folder / f"{number:05}.json") for number in range(len(shard_rows(origin)))]
    if None in shards:
        raise RoadError(
            f"{folder}: shard {shards.index(None)} was written elsewhere: all hosts must share the folder: set "
            "road.distill.cache"
        )
    with writing(folder):
        scores = np.concatenate([np.load(folder / f"{number:05}.scores.npy") for number in range(len(shards))])
        write_json(
            folder / MANIFEST,
            {"teacher": name, "origin": asdict(origin), "score": float(scores.mean()), "shards": shards},
        )


def damage(path: Path, shard: dict[str, Any], verify: bool) -> str:
    """What is wrong with a shard, "" when nothing is."""
    if not path.exists():
        return "the file is missing"
    if path.stat().st_size != shard["size"]:
        return f"the file has {path.stat().st_size} bytes, expected {shard['size']}"
    if verify and file_sha256(path) != shard["sha256"]:
        return "the file's bytes have changed (sha256)"
    if verify:
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_file(source).read_all().to_batches():
                if not np.isfinite(batch.column(0).values.to_numpy()).all():
                    return "a logit is not finite"
    return ""


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
