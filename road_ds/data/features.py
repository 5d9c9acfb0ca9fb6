"""Rows to features: encoded once, kept in an Arrow file that every rank maps into memory, and batched from there."""

import hashlib
import json
import math
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock

from road_ds.config import Columns, DatasetSpec, validated
from road_ds.data import catalog
from road_ds.data.negatives import with_negatives
from road_ds.data.readers import Answer, Example, Reading, choose, distinct, label_names, stream
from road_ds.digest import change, file_sha256, fingerprint, sealed, text_sha256, unsealed
from road_ds.errors import RoadError
from road_ds.hub import local_file
from road_ds.log import progress, warn, write_json
from road_ds.packing import Packing
from road_ds.tokenizer import check_texts

ENCODING = 4  # part of every cache key: raise it when the same rows encode to other features, or are kept otherwise
CHUNK = 1000  # rows per Arrow record batch
PAD_MULTIPLE = 8  # tokens; half-precision matrix units want it
MANIFEST = "manifest.json"
IGNORED = -100  # the label of a row that has none
Part = Literal["train", "dev"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One row of model input. A span-QA example becomes several, one per window of its context.

    offsets: for span QA the character range of each token in the context, [tokens, 2], -1 outside it; best: whether
    this is the window in which a token has the most context (1 or 0), [tokens]. Both empty otherwise.
    """

    input_ids: np.ndarray | list[int]  # [tokens]
    token_type_ids: np.ndarray | list[int]  # [tokens]
    labels: np.ndarray | list  # [rows of logits that the feature gives]
    example: int
    offsets: np.ndarray | list[int] = ()  # type: ignore[assignment]
    best: np.ndarray | list[int] = ()  # type: ignore[assignment]


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

    def __init__(self, path: Path, kept: int | None = None):  # chunks; numbers stay in the file, texts do not
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._chunk = lru_cache(maxsize=kept)(self._columns)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chunk, offset = divmod(index, CHUNK)
        row = {}
        for name, (bounds, values) in self._chunk(chunk).items():
            row[name] = values[offset] if bounds is None else values[bounds[offset] : bounds[offset + 1]]
        return row

    def missing(self, column: str) -> int:
        """How many rows have nothing in a column."""
        return sum(self._file.get_batch(i).column(column).null_count for i in range(self._file.num_record_batches))

    def _columns(self, chunk: int) -> dict[str, tuple[np.ndarray | None, Any]]:
        batch = self._file.get_batch(chunk)
        columns: dict[str, tuple[np.ndarray | None, Any]] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_list(column.type) and not pa.types.is_struct(column.type.value_type):
                columns[name] = (column.offsets.to_numpy(), column.values.to_numpy())
            elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                columns[name] = (None, column.to_numpy())
            else:
                columns[name] = (None, column.to_pylist())
        return columns


class FeatureSet:
    """The encoded features of one part of a data set, with the examples they came from."""

    def __init__(self, name: str, folder: Path, key: str, verify: bool = True):
        """Opens and verifies a folder that was written under a key. RoadError that names the damaged file.

        verify: compare every file's hash; without, its size only.
        """
        self.name, self.folder = name, folder
        try:
            self.manifest = unsealed(folder / MANIFEST)
        except ValueError as error:
            raise _damaged(folder / MANIFEST, error) from None
        if self.manifest["key"] != key:
            raise _damaged(folder / MANIFEST, "it is of other rows or settings")
        for file, written in self.manifest["files"].items():
            if fault := change(folder / file, written, hashed=verify):
                raise _damaged(folder / file, fault)
        self._features = ArrowRows(folder / "features.arrow")
        self._examples = ArrowRows(folder / "examples.arrow", kept=8)
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

    @property
    def pairs(self) -> bool | None:
        """Whether its examples are pairs of texts; None where some are."""
        lone = self._examples.missing("text_b")
        return None if 0 < lone < self.manifest["examples"] else not lone

    def examples(self) -> Iterator[Example]:
        """The examples one by one, in file order."""
        return map(self.example, range(self.manifest["examples"]))


def _damaged(path: Path, fault: object) -> RoadError:
    return RoadError(f"{path}: the cached file is damaged ({fault})")


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest of a feature set: the given facts (key, examples, features, ...) and every file's fingerprint."""
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, sealed({**facts, "files": files}))


def tokenizer_hash(tokenizer: Any) -> str:
    """A fingerprint of everything that decides how text becomes ids.

    Truncation and padding are left out: they are what the last call asked for, not the tokenizer's own.
    """
    own = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    text = json.dumps([own, tokenizer.special_tokens_map], default=str, sort_keys=True)
    return text_sha256(text)


@dataclass(frozen=True)
class Source:
    """The rows of one part of a data set: a file or split, the settings that read it, and what is left out on the way."""

    name: str
    part: Part
    source: str
    spec: DatasetSpec
    metric: str | None = None  # the one that is published for the data set

    @classmethod
    def of(cls, name: str, part: Part, spec: DatasetSpec, scored: bool = True) -> "Source":
        """Where a part's rows are; labels and answers are not looked at unless rows are trained on or `scored`.

        RoadError where the part is not given, or the catalog does not know the rest.
        """
        source = spec.dev if part == "dev" and not isinstance(spec.dev, float) else spec.train
        if source is None:
            raise RoadError(f"datasets.{name}.{part}: is required: a file, or a split for the formats hub and disk")
        assert isinstance(source, str)
        metric = catalog.entry(spec.catalog).metric if spec.catalog else None
        if spec.catalog is not None:
            source, spec = _of_catalog(name, source, spec)
        if part == "dev":
            spec = spec.model_copy(update={"both_orders": False, "negatives": 0.0})
        if not scored:
            if isinstance(spec.dev, float):
                raise RoadError(f"datasets.{name}.dev: got {spec.dev:g}: labels decide on a share of rows; give a file")
            columns = {**spec.columns.model_dump(), "label": None, "answers": None}
            spec = spec.model_copy(update={"columns": Columns(**columns)})
        return cls(name, part, source if spec.format in ("hub", "disk") else str(local_file(source)), spec, metric)

    @property
    def by_rows(self) -> bool:
        """Whether only the rows themselves say what they are: no file, or more than one."""
        return self.spec.format in ("hub", "disk", "qasrl_gs") or self.spec.shape == "trivia_qa"

    def examples(self, reading: Reading) -> Iterator[Example]:
        """The examples one by one, labels renamed by `label_map`; what is left out or made is noted in `reading`."""
        if not self.spec.negatives:
            return self._given(reading)
        readings = iter((Reading(), reading))  # the first time only entities are collected
        return with_negatives(lambda: self._given(next(readings)), self.spec.negatives, reading)

    def _given(self, reading: Reading) -> Iterator[Example]:
        chosen = None if not isinstance(self.spec.dev, float) else self._held_out(self.spec.dev)
        for example in stream(self.source, self.spec, reading, chosen):
            names = () if example.label is None else label_names(example.label)
            if (name := next((name for name in names if name in self.spec.label_map), None)) is not None:
                example = replace(example, label=self.spec.label_map[name])
            yield example

    def _held_out(self, share: float) -> np.ndarray:
        """The rows on this part's side of a split that keeps each label's share and is always the same for the same rows.

        The source is read once for the labels, so that the rows are never held together.
        """
        numbers, labels = choose(self.source, self.spec)
        return numbers[_side(self.name, labels, share, self.part)]


def _of_catalog(name: str, part: str, spec: DatasetSpec) -> tuple[str, DatasetSpec]:
    """File or split, and the entry's settings under those that the user gave."""
    given = spec.model_dump(exclude_unset=True, exclude={"path"})
    try:
        source, settings = catalog.sources(spec.catalog or "", part, spec.path)
    except RoadError as error:
        raise RoadError(f"datasets.{name}: {error}") from None
    columns = {**settings.get("columns", {}), **given.get("columns", {})}
    return source, validated(DatasetSpec, {**settings, **given, "columns": columns}, f"datasets.{name}")


def read_part(name: str, part: Part, spec: DatasetSpec, scored: bool = True) -> Reading:
    """The rows of one part of a data set, labels renamed by `label_map`; without labels where nothing is `scored`.

    RoadError where the part is not given.
    """
    reading = Reading()
    reading.examples = list(Source.of(name, part, spec, scored).examples(reading))
    return reading


def _side(name: str, labels: list, share: float, part: Part) -> np.ndarray:
    """Which rows are on one side of a held-out split, [rows] bool: each label's share as far as that goes."""
    from sklearn.model_selection import train_test_split

    held = math.ceil(share * len(labels))
    strata = _strata(labels, min(held, len(labels) - held))
    try:
        train, dev = train_test_split(range(len(labels)), test_size=share, random_state=0, stratify=strata)
    except ValueError as error:
        raise RoadError(f"datasets.{name}.dev: cannot hold out {share:g} of {len(labels)} rows: {error}") from None
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[train if part == "train" else dev] = True
    return chosen


def _strata(labels: list, room: int) -> list[int] | None:
    """A number for each row's label; the rarest, which there is no room for, have one together.

    None where labels are about as many as rows (numbers), or there is room for none. room: rows of the smaller side, which
    takes one of every label at least.
    """
    counts = Counter(labels)
    if len(counts) >= len(labels) / 4:
        return None
    common = [label for label, count in counts.most_common() if count > 1]
    if len(common) < len(counts) or len(common) > room:
        common = common[: max(0, room - 1)]
        if len(labels) - sum(counts[label] for label in common) == 1:  # the rest is one row: it goes with the last
            common.pop()
    alike = len({type(label) for label in common}) == 1
    number = {label: i for i, label in enumerate(sorted(common, key=None if alike else str))}
    return [number.get(label, len(number)) for label in labels] if number else None


def load_features(
    name: str, part: Part, spec: DatasetSpec, task: Any, tokenizer: Any, cache: str | Path, verify: bool = True
) -> FeatureSet:
    """The features of one part of a data set, from the cache or encoded into it.

    The cache is keyed by content: the source's bytes, the reader's settings, the tokenizer and the task's lengths and
    labels. A damaged file of it is named, and the rows are encoded again. Processes that share the cache wait for the first
    to finish; verify: whether this one compares the hashes. RoadError for anything wrong with the rows.
    """
    source = Source.of(name, part, spec)
    if source.spec.negatives and task.rows_per_feature == 1:
        raise RoadError(f"datasets.{name}.negatives: only questions over a context get negative ones, not {task.type}")
    content = _rows_hash(source.examples(Reading())) if source.by_rows else _file_content(source)
    whole = {"train", "dev"} - ({"dev"} if isinstance(spec.dev, float) else set())
    if spec.catalog is not None:
        whole.add("path")  # the content says what is there
    settings = source.spec.model_dump(exclude=whole)
    identity = [ENCODING, part, content, settings, task.model_dump(), tokenizer_hash(tokenizer)]
    key = text_sha256(json.dumps(identity, sort_keys=True, default=str))
    folder = Path(cache).expanduser() / "features" / f"{name}-{part}-{key[:24]}"
    try:
        features = _kept(folder, source, spec, task, tokenizer, key, content, verify)
    except OSError as error:
        raise RoadError(f"road.cache {cache}: cannot be written: {error}: free space there, or set it") from None
    check_texts(tokenizer, features, f"datasets.{name}.{part}")
    return features


def _kept(
    folder: Path, source: Source, spec: DatasetSpec, task: Any, tokenizer: Any, key: str, content: str, verify: bool
) -> FeatureSet:
    """The features in a folder of the cache; encoded where it is not there, or damaged."""
    with suppress(RoadError, OSError):  # what is damaged is looked at again when no other process can be mending it
        if folder.exists():
            return FeatureSet(source.name, folder, key, verify)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            try:
                return FeatureSet(source.name, folder, key, verify)
            except RoadError as error:
                warn(f"{error}: its rows are encoded again", everywhere=True)
                shutil.rmtree(folder)
        _encode(source, task, tokenizer, folder, key, content)
        encoded = FeatureSet(source.name, folder, key, verify=False)
        _compare_counts(spec, source, encoded.manifest)
        return encoded


def _file_content(source: Source) -> str:
    """What stands for the rows of a file; its name counts: the suffix decides on the reader, the stem is in ids."""
    return f"{Path(source.source).name} {_file_hash(Path(source.source))}"


def _file_hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError:
        raise RoadError(f"{path}: no such file") from None
    except OSError as error:
        raise RoadError(f"{str(path)[:300]}: cannot be read: {error.strerror}") from None


def _rows_hash(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        _add_row(digest, example)
    return digest.hexdigest()


def _add_row(digest: Any, example: Example) -> None:
    digest.update(repr(example).encode("utf-8", "surrogatepass"))


def _compare_counts(spec: DatasetSpec, source: Source, manifest: dict[str, Any]) -> None:
    """A warning where the catalog expects another number of rows than there are."""
    if (
        spec.catalog is None
        or isinstance(spec.dev, float)
        or source.spec.sample
        or spec.max_rows
        or spec.both_orders
        or spec.negatives
    ):
        return
    part = spec.dev if source.part == "dev" else spec.train
    expected = catalog.entry(spec.catalog).rows.get(str(part))
    found = manifest["examples"] + len(manifest["skipped"])
    if expected is not None and expected != found:
        warn(
            f"{source.name}: {source.source} gives {found:,} rows, the catalog expects {expected:,} in "
            f"{spec.catalog} {part}: another edition, or not all of it"
        )


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
            "best": pa.list_(pa.int8()),  # not bool, whose packed bits would be copied on every read
        }
    )


def _encode(source: Source, task: Any, tokenizer: Any, folder: Path, key: str, content: str) -> None:
    """Encodes rows into `folder` in one move: it is there whole, or not at all. Holds CHUNK rows at a time.

    RoadError when the rows are no longer those of `content`, which the key is made from.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        reading, digest, lengths, rows = Reading(), hashlib.sha256(), array("i"), 0
        label = pa.float32() if task.continuous else pa.int32()
        with (
            ArrowWriter(staged / "examples.arrow", EXAMPLE_SCHEMA, example_columns) as examples,
            ArrowWriter(staged / "features.arrow", feature_schema(label), feature_columns) as features,
            progress(None, f"encoding {source.name} {source.part}", "row") as bar,
        ):
            rest = source.examples(reading)
            if source.part == "dev":
                rest = distinct(rest)
            while chunk := list(islice(rest, CHUNK)):
                for example in chunk:
                    _check_labelled(example, source.name, task)
                    _add_row(digest, example)
                    examples.write(example)
                for feature in task.encode(chunk, tokenizer, rows):
                    lengths.append(len(feature.input_ids))
                    features.write(feature)
                rows += len(chunk)
                bar.update(len(chunk))
        np.save(staged / "lengths.npy", np.asarray(lengths, dtype=np.int32))
        rows_sha256 = digest.hexdigest()
        if content != (rows_sha256 if source.by_rows else _file_content(source)):
            raise RoadError(f"{source.source}: changed while it was read: start again")
        write_manifest(
            staged,
            {
                "key": key,
                "examples": rows,
                "features": len(lengths),
                "metric": source.metric,
                "skipped": reading.skipped,
                "dropped": reading.dropped,
                "negatives": reading.negatives,
                "rows_sha256": rows_sha256,
                "tokenizer_sha256": tokenizer_hash(tokenizer),
            },
        )
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check_labelled(example: Example, name: str, task: Any) -> None:
    if not task.labelled(example):
        what, setting = task.lacking(example)
        raise RoadError(
            f"{example.where}: the row has no {what} that the task of datasets.{name} ({task.type}) can learn from or be "
            f"scored on: check its columns, or set {setting}"
        )


def example_columns(examples: Sequence[Example], schema: pa.Schema) -> list[pa.Array]:
    columns = {
        **{name: [getattr(e, name) for e in examples] for name in ("id", "text_a", "text_b", "where")},
        "label": [None if e.label is None else str(e.label) for e in examples],
        "answers": [
            None if e.answers is None else [{"text": a.text, "start": a.start} for a in e.answers] for e in examples
        ],
    }
    return [pa.array(columns[column.name], column.type) for column in schema]


def feature_columns(features: Sequence[Feature], schema: pa.Schema) -> list[pa.Array]:
    columns = []
    for column in schema:
        cells = [getattr(feature, column.name) for feature in features]
        if pa.types.is_list(column.type):
            bounds = np.cumsum([0, *map(len, cells)], dtype=np.int32)
            flat = np.concatenate(cells).astype(column.type.value_type.to_pandas_dtype())
            columns.append(pa.ListArray.from_arrays(bounds, flat, column.type))
        else:
            columns.append(pa.array(cells, column.type))
    return columns


class ArrowWriter:
    """Writes rows to an Arrow file in record batches of CHUNK rows; `columns` makes the arrays of a batch."""

    def __init__(self, path: Path, schema: pa.Schema, columns: Callable[[Sequence[Any], pa.Schema], list[pa.Array]]):
        self._path, self._schema, self._columns = path, schema, columns
        self._rows: list[Any] = []

    def __enter__(self) -> "ArrowWriter":
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        return self

    def write(self, row: Any) -> None:
        """Adds a row."""
        self._rows.append(row)
        if len(self._rows) == CHUNK:
            self._flush()

    def _flush(self) -> None:
        batch = pa.RecordBatch.from_arrays(self._columns(self._rows, self._schema), schema=self._schema)
        self._writer.write_batch(batch)
        self._rows = []

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()
        self._sink.close()


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
