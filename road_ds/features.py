"""Rows to features: encoded once, kept in an Arrow file that every rank maps into memory, and batched from there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock

from road_ds.config import DatasetSpec
from road_ds.errors import RoadError
from road_ds.hub import local_file
from road_ds.log import progress, write_json
from road_ds.packing import Packing
from road_ds.readers import Answer, Example, Reading, read

ENCODING = 1  # part of every cache key: raise it when the same rows encode to other features
CHUNK = 1000  # rows per Arrow record batch
PAD_MULTIPLE = 8  # tokens; half-precision matrix units want it
IGNORED = -100  # the label of a row that has none
Part = Literal["train", "dev"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One row of model input. A span-QA example becomes several, one per window of its context.

    offsets: for span QA the character range of each token in the context, [tokens, 2], -1 outside it; best: whether
    this is the window in which a token has the most context, [tokens]. Both empty otherwise.
    """

    input_ids: np.ndarray | list[int]  # [tokens]
    token_type_ids: np.ndarray | list[int]  # [tokens]
    labels: np.ndarray | list  # [rows of logits that the feature gives]
    example: int
    offsets: np.ndarray | list[int] = ()  # type: ignore[assignment]
    best: np.ndarray | list[bool] = ()  # type: ignore[assignment]


@dataclass(frozen=True)
class Batch:
    """Padded features of one data set. Labels lie flat, one per row of logits."""

    dataset: str
    features: np.ndarray  # [features] their numbers in the data set
    input_ids: torch.Tensor  # [features, tokens]
    attention_mask: torch.Tensor  # [features, tokens]
    token_type_ids: torch.Tensor  # [features, tokens]
    lengths: torch.Tensor  # [features]
    labels: torch.Tensor  # [rows]
    full: bool = False  # no row is padded: known to the host, which need not ask the device
    packing: Packing | None = None  # where the rows lie when the encoder runs them as one sequence

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        tensors: dict[str, Any] = {f.name: v for f in fields(self) if torch.is_tensor(v := getattr(self, f.name))}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed, packing=self.packing and self.packing.map(change))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU can copy from while the host goes on."""
        return self.map(torch.Tensor.pin_memory)


class Features(Protocol):
    """Numbered features of one data set, wherever they are kept."""

    name: str

    @property
    def lengths(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Feature: ...


class ArrowRows:
    """The rows of an Arrow file, mapped into memory: nothing is read before it is asked for."""

    def __init__(self, path: Path):
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._chunk = lru_cache(maxsize=None)(self._columns)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chunk, offset = divmod(index, CHUNK)
        row = {}
        for name, (bounds, values) in self._chunk(chunk).items():
            row[name] = values[offset] if bounds is None else values[bounds[offset] : bounds[offset + 1]]
        return row

    def _columns(self, chunk: int) -> dict[str, tuple[np.ndarray | None, Any]]:
        batch = self._file.get_batch(chunk)
        columns: dict[str, tuple[np.ndarray | None, Any]] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_list(column.type) and not pa.types.is_struct(column.type.value_type):
                values = column.values
                flat = values.to_numpy(zero_copy_only=not pa.types.is_boolean(values.type))
                columns[name] = (column.offsets.to_numpy(), flat)
            elif pa.types.is_integer(column.type):
                columns[name] = (None, column.to_numpy())
            else:
                columns[name] = (None, column.to_pylist())
        return columns


class FeatureSet:
    """The encoded features of one part of a data set, with the examples they came from."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            wanted = dict(self.manifest["files"])
        except (ValueError, KeyError, TypeError):
            raise RoadError(f"{folder / 'manifest.json'}: the cached file is damaged: remove the folder") from None
        for file, size in wanted.items():
            if not (folder / file).exists() or (folder / file).stat().st_size != size:
                raise RoadError(
                    f"{folder / file}: the cached file is damaged (expected {size} bytes): remove the folder"
                )
        self._features = ArrowRows(folder / "features.arrow")
        self._examples = ArrowRows(folder / "examples.arrow")
        self.lengths = np.load(folder / "lengths.npy", mmap_mode="r")  # [features] tokens

    def __len__(self) -> int:
        return self.manifest["features"]

    def __getitem__(self, index: int) -> Feature:
        return Feature(**self._features[int(index)])

    def example(self, index: int) -> Example:
        """The example with this number."""
        row = self._examples[int(index)]
        answers = row.pop("answers")
        return Example(**row, answers=None if answers is None else tuple(Answer(**a) for a in answers))

    def examples(self) -> list[Example]:
        """All examples, in file order."""
        return [self.example(i) for i in range(self.manifest["examples"])]


def tokenizer_hash(tokenizer: Any) -> str:
    """A fingerprint of everything that decides how text becomes ids.

    Truncation and padding are left out: they are what the last call asked for, not the tokenizer's own.
    """
    own = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    text = json.dumps([own, tokenizer.special_tokens_map], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_part(name: str, part: Part, spec: DatasetSpec) -> Reading:
    """The rows of one part of a data set, labels renamed by `label_map`. RoadError where the part is not given."""
    source = spec.dev if part == "dev" and not isinstance(spec.dev, float) else spec.train
    if source is None:
        raise RoadError(f"datasets.{name}.{part}: is required: a file, or a split for the formats hub and disk")
    assert isinstance(source, str)
    reading = read(source if spec.format in ("hub", "disk") else str(local_file(source)), spec)
    if isinstance(spec.dev, float):
        reading = replace(reading, examples=_held_out(name, reading.examples, spec.dev, part))
    if spec.label_map:
        renamed = [
            replace(e, label=spec.label_map.get(e.label, e.label)) if isinstance(e.label, str) else e
            for e in reading.examples
        ]
        reading = replace(reading, examples=renamed)
    return reading


def _held_out(name: str, examples: list[Example], share: float, part: Part) -> list[Example]:
    """One side of a split that keeps each label's share and is always the same for the same rows."""
    from sklearn.model_selection import train_test_split

    labels = [e.label if e.answers is None else bool(e.answers) for e in examples]
    stratify = (
        labels if all(labels.count(label) > 1 for label in set(labels)) and len(set(labels)) < len(labels) / 4 else None
    )
    try:
        train, dev = train_test_split(range(len(examples)), test_size=share, random_state=0, stratify=stratify)
    except ValueError as error:
        raise RoadError(f"datasets.{name}.dev: cannot hold out {share:g} of {len(examples)} rows: {error}") from None
    return [examples[i] for i in sorted(train if part == "train" else dev)]


def load_features(name: str, part: Part, spec: DatasetSpec, task: Any, tokenizer: Any, cache: str | Path) -> FeatureSet:
    """The features of one part of a data set, from the cache or encoded into it.

    The cache is keyed by content: the source's bytes, the reader's settings, the tokenizer and the task's lengths and
    labels. Processes that share the cache wait for the first to finish. RoadError for anything wrong with the rows.
    """
    reading = None
    if spec.format in ("hub", "disk"):
        reading = read_part(name, part, spec)
        content = _rows_hash(reading.examples)
    else:
        source = spec.dev if part == "dev" and isinstance(spec.dev, str) else spec.train
        # The name counts too: its suffix decides on the reader, its stem is in the ids of rows that have none.
        content = f"{Path(source).name} {_file_hash(local_file(source))}" if source else ""
    whole = {"train", "dev"} - ({"dev"} if isinstance(spec.dev, float) else set())
    key = [ENCODING, part, content, spec.model_dump(exclude=whole), task.model_dump(), tokenizer_hash(tokenizer)]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    folder = Path(cache).expanduser() / "features" / f"{name}-{part}-{digest[:24]}"
    if not (folder / "manifest.json").exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / "manifest.json").exists():
                    _encode(name, part, reading or read_part(name, part, spec), task, tokenizer, folder, digest)
        except OSError as error:
            raise RoadError(f"road.cache {cache}: cannot be written: {error}: free space there, or set it") from None
    return FeatureSet(name, folder)


def _file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise RoadError(f"{path}: no such file") from None
    except OSError as error:
        raise RoadError(f"{path}: cannot be read: {error}") from None


def _rows_hash(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


EXAMPLE_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text_a": pa.string(),
        "text_b": pa.string(),
        "label": pa.string(),
        "answers": pa.list_(pa.struct({"text": pa.string(), "start": pa.int32()})),
        "where": pa.string(),
    }
)


def feature_schema(label: pa.DataType) -> pa.Schema:
    return pa.schema(
        {
            "input_ids": pa.list_(pa.int32()),
            "token_type_ids": pa.list_(pa.int8()),
            "labels": pa.list_(label),
            "example": pa.int32(),
            "offsets": pa.list_(pa.int32()),
            "best": pa.list_(pa.bool_()),
        }
    )


def _encode(name: str, part: Part, reading: Reading, task: Any, tokenizer: Any, folder: Path, key: str) -> None:
    """Encodes rows into `folder` in one move: it is there whole, or not at all."""
    for example in reading.examples:
        if not task.labelled(example):
            raise RoadError(
                f"{example.where}: the row has no {'answers' if example.label is not None else 'label'} "
                f"that the task of datasets.{name} ({task.type}) can learn from or be scored on: check its columns"
            )
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        examples = reading.examples
        lengths: list[int] = []

        def encoded(bar: Any) -> Iterator[dict[str, Any]]:
            for first in range(0, len(examples), CHUNK):
                chunk = examples[first : first + CHUNK]
                for feature in task.encode(chunk, tokenizer, first):
                    lengths.append(len(feature.input_ids))
                    yield {f.name: getattr(feature, f.name) for f in fields(feature)}
                bar.update(len(chunk))

        write_arrow(staged / "examples.arrow", EXAMPLE_SCHEMA, map(_example_row, examples))
        label = pa.float32() if task.continuous else pa.int32()
        with progress(len(examples), f"encoding {name} {part}", "row") as bar:
            write_arrow(staged / "features.arrow", feature_schema(label), encoded(bar))
        np.save(staged / "lengths.npy", np.asarray(lengths, dtype=np.int32))
        write_json(
            staged / "manifest.json",
            {
                "key": key,
                "examples": len(examples),
                "features": len(lengths),
                "skipped": reading.skipped,
                "dropped": reading.dropped,
                "rows_sha256": _rows_hash(examples),
                "tokenizer_sha256": tokenizer_hash(tokenizer),
                "files": {f.name: f.stat().st_size for f in staged.iterdir()},
            },
        )
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _example_row(example: Example) -> dict[str, Any]:
    row = asdict(example)
    row["label"] = None if example.label is None else str(example.label)
    return row


def write_arrow(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        chunk: list[dict[str, Any]] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK:
                writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))
                chunk = []
        if chunk:
            writer.write_batch(pa.RecordBatch.from_pylist(chunk, schema=schema))


def collate(
    source: Features, rows: Sequence[int] | np.ndarray, pad_id: int, *, width: int = 0, packed: bool = False
) -> Batch:
    """A batch of the given features, padded on the right to `width` tokens.

    width: by default the longest row, rounded up to a multiple of 8; packed: the encoder shall run the rows as one
    sequence without their padding.
    """
    features = [source[i] for i in rows]
    lengths = np.array([len(f.input_ids) for f in features])
    width = width or rounded_up(int(lengths.max()))
    ids = np.full((len(features), width), pad_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for i, feature in enumerate(features):
        ids[i, : lengths[i]] = feature.input_ids
        types[i, : lengths[i]] = feature.token_type_ids
    labels = np.concatenate([f.labels for f in features])
    return Batch(
        dataset=source.name,
        features=np.asarray(rows),
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy((np.arange(width) < lengths[:, None]).astype(np.int64)),
        token_type_ids=torch.from_numpy(types),
        lengths=torch.from_numpy(lengths),
        labels=torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)),
        full=bool((lengths == width).all()),
        packing=Packing.of(lengths, width) if packed else None,
    )


def rounded_up(tokens: int, multiple: int = PAD_MULTIPLE) -> int:
    """The next multiple of some tokens."""
    return -(-tokens // multiple) * multiple
