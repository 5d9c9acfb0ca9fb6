"""Rows in Arrow files: written chunk by chunk, mapped into memory, read as they are asked for."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

CHUNK = 1000  # rows per Arrow record batch, fewer where they are large
SIZE = 2**22  # characters of texts in one


class ArrowRows:
    """The rows of an Arrow file, mapped into memory: nothing is read before it is asked for."""

    def __init__(self, path: Path, kept: int | None = None):  # chunks; numbers stay in the file, texts do not
        self._file = pa.ipc.open_file(pa.memory_map(str(path)))
        self._chunk = lru_cache(maxsize=kept)(self._columns)
        batches = range(self._file.num_record_batches)
        self._starts = list(accumulate((self._file.get_batch(i).num_rows for i in batches), initial=0))

    def __getitem__(self, index: int) -> dict[str, Any]:
        chunk = bisect_right(self._starts, index) - 1
        offset = index - self._starts[chunk]
        row = {}
        for name, (bounds, values) in self._chunk(chunk).items():
            row[name] = values[offset] if bounds is None else values[bounds[offset] : bounds[offset + 1]]
        return row

    def missing(self, column: str) -> int:
        """How many rows have nothing in a column."""
        return sum(self._file.get_batch(i).column(column).null_count for i in range(self._file.num_record_batches))

    def lists(self, column: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """A column of lists of numbers, chunk by chunk: where each row's list begins and the last one ends, and all values."""
        for i in range(self._file.num_record_batches):
            found = self._file.get_batch(i).column(column)
            yield found.offsets.to_numpy(), found.values.to_numpy()

    def counts(self, column: str) -> Counter[Any]:
        """How often each value stands in the lists of a column."""
        found: Counter[Any] = Counter()
        for i in range(self._file.num_record_batches):
            for pair in self._file.get_batch(i).column(column).flatten().value_counts().to_pylist():
                found[pair["values"]] += pair["counts"]
        return found

    def columns(self, *names: str) -> Iterator[tuple[Any, ...]]:
        """Some columns of all rows, a chunk in memory at a time."""
        for i in range(self._file.num_record_batches):
            batch = self._file.get_batch(i)
            yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)

    def _columns(self, chunk: int) -> dict[str, tuple[np.ndarray | None, Any]]:
        batch = self._file.get_batch(chunk)
        columns: dict[str, tuple[np.ndarray | None, Any]] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
                columns[name] = (column.offsets.to_numpy(), column.values.to_numpy())
            elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
                columns[name] = (None, column.to_numpy())
            else:
                columns[name] = (None, column.to_pylist())
        return columns


class ArrowWriter:
    """Writes rows to an Arrow file in record batches of CHUNK rows or SIZE characters; `columns` makes a batch's arrays."""

    def __init__(self, path: Path, schema: pa.Schema, columns: Callable[[Sequence[Any], pa.Schema], list[pa.Array]]):
        self._path, self._schema, self._columns = path, schema, columns
        self._rows: list[Any] = []
        self._size = 0

    def __enter__(self) -> "ArrowWriter":
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_file(self._sink, self._schema)
        return self

    def write(self, row: Any, size: int = 0) -> None:
        """Adds a row; size: the characters of its texts."""
        self._rows.append(row)
        self._size += size
        if len(self._rows) == CHUNK or self._size >= SIZE:
            self._flush()

    def _flush(self) -> None:
        batch = pa.RecordBatch.from_arrays(self._columns(self._rows, self._schema), schema=self._schema)
        self._writer.write_batch(batch)
        self._rows, self._size = [], 0

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()
        self._sink.close()
