"""Teachers' logits, and the first tokens' vectors of their layers, on disk: shards, each hashed, then a manifest.

Teachers are never combined on disk, so that temperature, weights and the choice of teachers can change.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from road_ds.common.errors import RoadError
from road_ds.common.log import write_json
from road_ds.common.sealed import MANIFEST, Damaged, Fingerprint, Manifest, check, read_manifest, write_manifest
from road_ds.data.arrow import CHUNK, ArrowRows
from road_ds.tasks.labels import order_of, reordered

SHARD = 4 * CHUNK  # features per file, the unit of work of a rank


BEGUN = "begun.json"


@dataclass(frozen=True)
class Origin:
    """What soft targets depend on. labels: in the order stored, None where they have no names; per_label: numbers of each;
    student: hash of its tokenizer, where that decides which rows of logits there are.

    vectors: layers and width of the states that are kept beside the logits, None where none are.
    """

    dataset: str
    teacher: str  # hash of its weights and configuration
    rows: str  # hash of the rows in order
    features: int
    tokenizer: str  # hash of the teacher's
    windows: dict[str, int]  # the task's lengths
    labels: list[str] | None
    dtype: str
    vectors: list[int] | None = None
    per_label: int = 1
    student: str = ""

    def serves(self, other: "Origin") -> bool:
        """Whether soft targets from here are those that another asks for; states beside the logits may be left unread."""
        return self == (other if other.vectors is not None else replace(other, vectors=self.vectors))

    def differences(self, other: "Origin") -> list[str]:
        """In what two origins differ, in words; neither the order of labels nor what is kept beside the logits counts."""
        words = {
            "dataset": "data set",
            "teacher": "teacher (its weights or configuration have changed)",
            "rows": "rows, or another order of them",
            "features": "number of windows",
            "tokenizer": "tokenizer",
            "student": "tokenizer of the student",
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


class Written(Manifest):
    """What finished soft targets say of themselves; their files are the shards, in order."""

    teacher: str  # its name
    origin: Origin
    score: float  # the mean of how right it is on a feature


class SoftTargets:
    """The soft targets of one teacher for one data set, mapped into memory."""

    def __init__(self, folder: Path, origin: Origin, teacher: str, verify: bool = True, config: str = "FILE"):
        """Opens and verifies a folder. RoadError that names what is missing, damaged or made from something else.

        Labels in another order are put into that of `origin`. verify: compare every shard's hash and look for numbers that
        are not finite; without, sizes only. config: the run's file, for the command that makes them.
        """
        again = f"; run `python -m road_ds teach --deepspeed_config {config}`"
        about = f"soft targets of {teacher} for {origin.dataset}"
        if not (folder / MANIFEST).exists():
            state = "are not finished" if folder.exists() else "are not there"
            raise RoadError(f"{folder}: the {about} {state}{again}")
        try:
            manifest = read_manifest(folder / MANIFEST, Written)
            made = manifest.origin
            if different := made.differences(origin):
                raise Damaged(f"{folder}: the {about} were made from another {', another '.join(different)}")
            if origin.vectors is not None and made.vectors is None:
                raise Damaged(f"{folder}: the {about} are logits alone, and road.distill.layers compares states")
            check_shards(folder, manifest.files, verify)
        except Damaged as error:
            raise RoadError(f"{error}{again}") from None
        self.folder, self.dtype, self.teacher = folder, np.dtype(origin.dtype), made.teacher
        self._files = [folder / name for name in manifest.files]
        self._shards = [ArrowRows(path) for path in self._files]
        self._order, self._per_label = order_of(made.labels, origin.labels), origin.per_label
        self.shape = made.vectors
        self._features = origin.features

    def __len__(self) -> int:
        return self._features

    def __getitem__(self, feature: int) -> np.ndarray:
        """The logits of a feature, flat: rows x classes without padding."""
        shard, offset = divmod(int(feature), SHARD)
        return reordered(self._shards[shard][offset]["logits"], self._order, self._per_label)

    def vectors(self, feature: int) -> np.ndarray:
        """The first token's hidden states of a feature, [layers, width], from the first layer on."""
        shard, offset = divmod(int(feature), SHARD)
        return self._shards[shard][offset]["vectors"].reshape(self.shape)

    def scores(self) -> np.ndarray:
        """Per feature 1 where the teacher is right and 0 where it is not; for a regression its squared error."""
        return np.concatenate([shard_scores(path) for path in self._files])


def flaw(folder: Path, origin: Origin) -> str:
    """Why a folder is not finished soft targets of just this origin, with the file's name; "" when it is."""
    try:
        manifest = read_manifest(folder / MANIFEST, Written)
        if not manifest.origin.serves(origin):
            return f"{folder}: made from something else"
        check_shards(folder, manifest.files)
    except RoadError as error:
        return str(error)
    return ""


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
    different: list[str] = []
    if folder.exists():
        try:
            begun = Origin(**(read_json(folder / BEGUN) or {}))
            if begun == origin:
                return []
            beside = ["choice of states beside the logits"] if begun.vectors != origin.vectors else []
            different = begun.differences(origin) or beside or ["order of labels"]
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
    try:
        check_shards(folder, shard_record(folder, number))
    except Damaged:
        return False
    return True


def shard_record(folder: Path, number: int) -> dict[str, Fingerprint]:
    """What a shard's file is that was written. Damaged where nothing is known of it."""
    return read_manifest(folder / f"{number:05}.json", Manifest).files


def shard_scores(path: Path) -> np.ndarray:
    """The scores of a shard's features, [features]."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all().column("score").to_numpy()


def write_shard(
    folder: Path,
    number: int,
    logits: Sequence[np.ndarray],
    scores: np.ndarray,
    origin: Origin,
    vectors: Sequence[np.ndarray] = (),
) -> None:
    """Writes one shard; logits: per feature, any shape; scores: how right the teacher is on each, [features].

    vectors: per feature the first token's states, [layers, width], where the origin has them; kept in float16. RoadError
    for numbers that are not finite, in this dtype too.
    """
    columns = {"logits": Column.of(logits, origin.dtype)}
    if origin.vectors is not None:
        columns["vectors"] = Column.of(vectors, "float16")
    for name, column in columns.items():
        if (row := column.broken()) is not None:
            remedy = "set road.distill.dtype to float32" if name == "logits" else 'set road.distill.source to "online"'
            why = f"too large for {column.values.dtype}: {remedy}" if column.whole else "not finite"
            feature = number * SHARD + row
            raise RoadError(
                f"{origin.dataset}: the teacher's {name} of feature {feature} are {why}; nothing was stored"
            )
    path = folder / f"{number:05}.arrow"
    staged = path.with_suffix(f".{os.getpid()}")
    schema = pa.schema({**{name: column.type for name, column in columns.items()}, "score": pa.float32()})
    with writing(folder):
        with pa.OSFile(str(staged), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for first in range(0, len(scores), CHUNK):
                rows = [column.part(first) for column in columns.values()]
                right = pa.array(scores[first : first + CHUNK], pa.float32())
                writer.write_batch(pa.record_batch([*rows, right], schema=schema))
        os.replace(staged, path)
        write_manifest(folder / f"{number:05}.json", Manifest(files={path.name: Fingerprint.of(path)}))


@dataclass(frozen=True)
class Column:
    """Numbers of each feature of a shard, as lists one behind the other; whole: all were finite in the type they came in."""

    values: np.ndarray
    bounds: np.ndarray
    whole: bool

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: str) -> "Column":
        """The numbers of each feature, any shape, as this type."""
        flat = [values.ravel() for values in rows]
        with np.errstate(over="ignore"):
            values = np.concatenate(flat).astype(dtype)
        bounds = np.concatenate([[0], np.cumsum([len(values) for values in flat])])
        return cls(values, bounds, all(np.isfinite(values).all() for values in flat))

    def broken(self) -> int | None:
        """The first feature with a number that is not finite."""
        places = np.flatnonzero(~np.isfinite(self.values))
        return int(np.searchsorted(self.bounds, places[0], "right")) - 1 if len(places) else None

    @property
    def type(self) -> pa.DataType:
        """As Arrow calls it."""
        return pa.list_(pa.from_numpy_dtype(self.values.dtype))

    def part(self, first: int) -> pa.ListArray:
        """The lists of a chunk of features."""
        part = self.bounds[first : first + CHUNK + 1]
        values = pa.array(self.values[part[0] : part[-1]])
        return pa.ListArray.from_arrays(pa.array(part - part[0], pa.int32()), values, type=self.type)


def finish(folder: Path, origin: Origin, name: str) -> None:
    """Writes the manifest over all shards: from now on the folder counts."""
    files: dict[str, Fingerprint] = {}
    for number in range(len(shard_rows(origin))):
        try:
            files |= shard_record(folder, number)
        except Damaged as error:
            raise RoadError(
                f"{error}: shard {number} is damaged, or was written elsewhere: all hosts must share the folder: set "
                "road.distill.cache"
            ) from None
    with writing(folder):
        scores = np.concatenate([shard_scores(folder / file) for file in files])
        written = Written(files=files, teacher=name, origin=origin, score=float(scores.mean()))
        write_manifest(folder / MANIFEST, written)


def check_shards(folder: Path, files: dict[str, Fingerprint], verify: bool = True) -> None:
    """Damaged names the shard that is not as it was written, or, where verified, holds a number that is not finite."""
    for name, written in files.items():
        check(folder / name, written, hashed=verify)
        if verify:
            with pa.memory_map(str(folder / name)) as source:
                table = pa.ipc.open_file(source).read_all()
                for kind in set(table.column_names) - {"score"}:
                    if not all(np.isfinite(chunk.values.to_numpy()).all() for chunk in table[kind].iterchunks()):
                        raise Damaged(f"{folder / name}: a {kind.removesuffix('s')} is not finite")


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
