"""Examples -> features, encoded once into Arrow files: a cache by content."""

import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from road_ds.common.digest import file_sha256, text_sha256
from road_ds.common.errors import RoadError
from road_ds.common.hub import expanded
from road_ds.common.log import counted, progress, warn
from road_ds.common.sealed import MANIFEST, Damaged, Manifest, fingerprints, verify, write_manifest
from road_ds.config import catalog
from road_ds.config.road import DatasetSpec
from road_ds.data.arrow import CHUNK, SIZE, ArrowRows, ArrowWriter
from road_ds.data.batch import Feature
from road_ds.data.choices import Choice
from road_ds.data.files import files_of
from road_ds.data.readers import Answer, Example, Reading, distinct
from road_ds.data.sources import Part, Source, unlabelled
from road_ds.data.tokenizer import check_texts, tokenizer_hash

ENCODING = 10  # part of every cache key: raise it when the same rows encode to other features, are kept otherwise, or are refused


class Encoded(Manifest):
    """What a feature set's folder says of itself."""

    key: str
    examples: int
    features: int
    metric: str | None = None
    skipped: list[str] = []  # as in Reading, as are the next two
    dropped: dict[str, int] = {}
    negatives: int = 0
    rows_sha256: str = ""
    tokenizer_sha256: str = ""


class FeatureSet:
    """The encoded features of one part of a data set, with the examples they came from."""

    def __init__(self, name: str, folder: Path, key: str, hashed: bool = True):
        """Opens and verifies a folder that was written under a key. Damaged names the file.

        hashed: compare every file's hash; without, its size only.
        """
        self.name, self.folder, self.manifest = name, folder, verify(folder, Encoded, hashed)
        if self.manifest.key != key:
            raise Damaged(f"{folder / MANIFEST}: is of other rows or settings")
        self._features = ArrowRows(folder / "features.arrow")
        self._examples = ArrowRows(folder / "examples.arrow", kept=8)
        self.lengths = np.load(folder / "lengths.npy", mmap_mode="r")  # [features] tokens
        sequences = folder / "sequences.npy"
        self.sequences = np.load(sequences, mmap_mode="r") if sequences.exists() else None

    def __len__(self) -> int:
        return self.manifest.features

    def __getitem__(self, index: int) -> Feature:
        return Feature(**self._features[int(index)])

    def example(self, index: int) -> Example:
        """The example with this number."""
        row = self._examples[int(index)]
        answers, labels, choices = (row.pop(name) for name in ("answers", "labels", "choices"))
        if labels is not None:
            row["label"] = tuple(labels)
        return Example(
            **row,
            answers=None if answers is None else tuple(Answer(**a) for a in answers),
            choices=None if choices is None else tuple(Choice(**c) for c in choices),
        )

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of logits that each feature gives, [features]."""
        return np.concatenate([np.diff(bounds) for bounds, _ in self._features.lists("labels")])

    def unread(self) -> str:
        """How many words have no token that was read, in words; "" where there is none."""
        counts = []
        for bounds, words in self._features.lists("words"):
            counts.append(np.diff(np.concatenate([[0], np.cumsum(words < 0)])[bounds]))
        found = np.concatenate(counts)
        if not found.any():
            return ""
        rows = counted(int(np.count_nonzero(found)), "row")
        return f"{counted(int(found.sum()), 'word')} of {rows} not read (behind max_length, or no token at all): they count as O"

    @property
    def pairs(self) -> bool | None:
        """Whether its examples are pairs of texts; None where some are."""
        lone = self._examples.missing("text_b")
        return None if 0 < lone < self.manifest.examples else not lone

    def labels(self) -> Counter[int]:
        """How often each label stands in the features, by its number."""
        return self._features.counts("labels")

    def examples(self) -> Iterator[Example]:
        """The examples one by one, in file order."""
        return map(self.example, range(self.manifest.examples))

    def texts(self) -> Iterator[tuple[str | None, ...]]:
        """Both texts of the examples and their choices, in file order: read by columns, so that all of them are looked at in no time."""
        for first, second, choices in self._examples.columns("text_a", "text_b", "choices"):
            yield first, second, *(choice["text"] for choice in choices or ())


def note(folder: Path, **facts: Any) -> None:
    """Writes the manifest of a feature set: the given facts of Encoded, and what every file is."""
    write_manifest(folder / MANIFEST, Encoded(files=fingerprints(folder), **facts))


def load_features(
    name: str,
    part: Part,
    spec: DatasetSpec,
    task: Any,
    tokenizer: Any,
    cache: str | Path,
    verify: bool = True,
    labelled: bool = True,
) -> FeatureSet:
    """The features of one part of a data set, from the cache or encoded into it.

    The cache is keyed by content: the source's bytes, the reader's settings, the tokenizer and the task's lengths and
    labels. A damaged file of it is named, and the rows are encoded again. Processes that share the cache wait for the first
    to finish; verify: whether this one compares the hashes; labelled: whether the rows must have what the task learns from,
    or are read without it. RoadError for anything wrong with the rows.
    """
    source = Source.of(name, part, spec if task.supervised and labelled else unlabelled(spec))
    if source.spec.negatives and not task.over_tokens:
        raise RoadError(f"datasets.{name}.negatives: only questions over a context get negative ones, not {task.type}")
    content = _rows_hash(source.examples(Reading())) if source.by_rows else _file_content(source)
    whole = {"train", "dev"} - ({"dev"} if isinstance(spec.dev, float) else set())
    if spec.catalog is not None:
        whole.add("path")  # the content says what is there
    settings = source.spec.model_dump(exclude=whole)
    identity = [ENCODING, part, content, settings, task.encoding(), tokenizer_hash(tokenizer)]
    key = text_sha256(json.dumps(identity, sort_keys=True, default=str))
    folder = expanded(cache, "road.cache ") / "features" / f"{name}-{part}-{key[:24]}"
    try:
        features = _kept(folder, source, spec, task, tokenizer, key, content, verify, labelled)
    except OSError as error:
        raise RoadError(f"road.cache {cache}: cannot be written: {error}: free space there, or set it") from None
    check_texts(tokenizer, features, f"datasets.{name}.{part}")
    return features


def _kept(
    folder: Path,
    source: Source,
    spec: DatasetSpec,
    task: Any,
    tokenizer: Any,
    key: str,
    content: str,
    verify: bool,
    labelled: bool,
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
            except Damaged as error:
                warn(f"{error}: the cached rows are encoded again", everywhere=True)
                shutil.rmtree(folder)
        _encode(source, task, tokenizer, folder, key, content, labelled)
        encoded = FeatureSet(source.name, folder, key, hashed=False)
        _compare_counts(spec, source, encoded.manifest)
        return encoded


def _file_content(source: Source) -> str:
    """What stands for the rows of a file or folder; names count: suffixes decide on readers, stems are in ids."""
    files = files_of(source.source)
    return " ".join(f"{name} {_file_hash(path)}" for name, path in files.items())


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


def _compare_counts(spec: DatasetSpec, source: Source, manifest: Encoded) -> None:
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
    found = manifest.examples + len(manifest.skipped)
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
        "labels": pa.list_(pa.string()),
        "answers": pa.list_(pa.struct({"text": pa.string(), "start": pa.int32()})),
        "where": pa.string(),
        "choices": pa.list_(pa.struct({"key": pa.string(), "text": pa.string()})),
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
            "sequences": pa.list_(pa.int32()),
            "best": pa.list_(pa.int8()),  # not bool, whose packed bits would be copied on every read
            "words": pa.list_(pa.int32()),
        }
    )


def _encode(source: Source, task: Any, tokenizer: Any, folder: Path, key: str, content: str, labelled: bool) -> None:
    """Encodes rows into `folder` in one move: it is there whole, or not at all. Holds a chunk of rows at a time.

    RoadError when the rows are no longer those of `content`, which the key is made from.
    """
    staged = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        reading, digest, lengths, rows = Reading(), hashlib.sha256(), array("i"), 0
        sequences: list[tuple[int, int]] = []
        label = pa.float32() if task.continuous else pa.int32()
        with (
            ArrowWriter(staged / "examples.arrow", EXAMPLE_SCHEMA, example_columns) as examples,
            ArrowWriter(staged / "features.arrow", feature_schema(label), feature_columns) as features,
            progress(None, f"encoding {source.name} {source.part}", "row") as bar,
        ):
            rest = source.examples(reading)
            if source.part == "dev":
                rest = distinct(rest)
            for chunk in _chunks(rest):
                for example in chunk:
                    if labelled:
                        check_labelled(example, source.name, task)
                    _add_row(digest, example)
                    examples.write(example, _size(example))
                for feature in task.encode(chunk, tokenizer, rows):
                    lengths.append(len(feature.input_ids))
                    if len(feature.sequences):
                        sequences.append((max(feature.sequences), len(feature.sequences)))
                    features.write(feature)
                rows += len(chunk)
                bar.update(len(chunk))
        if not lengths:
            raise RoadError(
                f"datasets.{source.name}.{source.part}: {source.source}: no row of {counted(rows, 'row')} is long enough to be a sequence"
            )
        np.save(staged / "lengths.npy", np.asarray(lengths, dtype=np.int32))
        if sequences:
            np.save(staged / "sequences.npy", np.asarray(sequences, dtype=np.int32))
        rows_sha256 = digest.hexdigest()
        if content != (rows_sha256 if source.by_rows else _file_content(source)):
            raise RoadError(f"{source.source}: changed while it was read: start again")
        note(
            staged,
            key=key,
            examples=rows,
            features=len(lengths),
            metric=source.metric,
            skipped=reading.skipped,
            dropped=reading.dropped,
            negatives=reading.negatives,
            rows_sha256=rows_sha256,
            tokenizer_sha256=tokenizer_hash(tokenizer),
        )
        os.replace(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """The examples, so many at a time as are held in memory: CHUNK, or fewer with SIZE characters."""
    chunk: list[Example] = []
    size = 0
    for example in examples:
        chunk.append(example)
        size += _size(example)
        if len(chunk) == CHUNK or size >= SIZE:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(example: Example) -> int:
    """The characters of an example's texts."""
    return len(example.text_a) + len(example.text_b or "") + sum(len(choice.text) for choice in example.choices or ())


def check_labelled(example: Example, name: str, task: Any) -> None:
    """RoadError where an example of a data set has nothing that the task can learn from, or choices that it would not read."""
    if not task.labelled(example):
        what, setting = task.lacking(example)
        raise RoadError(
            f"{example.where}: the row has no {what} that the task of datasets.{name} ({task.type}) can learn from or be "
            f"scored on: check its columns, or set {setting}"
        )
    if example.choices is not None and not task.several_sequences:
        raise RoadError(
            f"{example.where}: the row has choices, which the task of datasets.{name} ({task.type}) does not read: set its type to "
            '"multiple_choice", or columns.choices to null'
        )


def example_columns(examples: Sequence[Example], schema: pa.Schema) -> list[pa.Array]:
    columns = {
        **{name: [getattr(e, name) for e in examples] for name in ("id", "text_a", "text_b", "where")},
        "label": [None if e.label is None or isinstance(e.label, tuple) else str(e.label) for e in examples],
        "labels": [e.label if isinstance(e.label, tuple) else None for e in examples],
        "answers": [
            None if e.answers is None else [{"text": a.text, "start": a.start} for a in e.answers] for e in examples
        ],
        "choices": [
            None if e.choices is None else [{"key": c.key, "text": c.text} for c in e.choices] for e in examples
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
