"""Rows as long as those of ROaD's nine data sets, for benchmarks: the tokens are random, the lengths are what costs.

The mean lengths are assumed from the sets' published word counts, not measured on the sets; the spread is assumed too.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from road_ds.data.arrow import ArrowWriter
from road_ds.data.batch import Feature
from road_ds.data.features import FeatureSet, feature_columns, feature_schema, note

SIGMA = 0.5  # of the logarithm of a length, assumed for every set
STRIDE = 128  # distance between the windows of a context that is too long
FIRST_ID = 5  # of the tokens that a row may hold: behind the special ones


class Mixed(NamedTuple):
    """A data set of the mix: tokens per row with question or pair (mean), and whether long rows become windows."""

    task: str
    mean: int
    windows: bool = False


MIX = {
    "snli": Mixed("nli", 27),
    "qqp": Mixed("paraphrase", 31),
    "mnli": Mixed("nli", 40),
    "qa_srl": Mixed("mrc", 40, windows=True),
    "qa_zre": Mixed("mrc", 48, windows=True),
    "amazon": Mixed("sentiment", 100),
    "natural_questions": Mixed("mrc", 210, windows=True),
    "triviaqa": Mixed("mrc", 1050, windows=True),
    "quac": Mixed("mrc", 560, windows=True),
}
CLASSES = {"nli": 3, "paraphrase": 2, "sentiment": 5}  # a span's classes are its tokens


def lengths(mixed: Mixed, rows: int, longest: int, generator: np.random.Generator) -> np.ndarray:
    """Tokens per row, [rows]: log-normal around the mean, cut at `longest` (above STRIDE) or split into windows of it."""
    drawn = generator.lognormal(np.log(mixed.mean) - SIGMA**2 / 2, SIGMA, rows).round().astype(int).clip(3)
    if not mixed.windows:
        return drawn.clip(max=longest)
    whole = -(-(drawn - longest).clip(min=0) // STRIDE)  # windows of full length; one more holds the rest
    rest = drawn - whole * STRIDE
    windows = np.concatenate([np.full(whole.sum(), longest), rest])
    return generator.permutation(windows)[:rows]


def write_mix(folder: Path, rows: int, longest: int, vocabulary: int, seed: int = 0) -> dict[str, FeatureSet]:
    """Every data set of the mix with `rows` rows, in the files that a run reads."""
    return {
        name: _write(folder / name, name, mixed, rows, longest, vocabulary, np.random.default_rng([seed, number]))
        for number, (name, mixed) in enumerate(MIX.items())
    }


def _write(
    folder: Path, name: str, mixed: Mixed, rows: int, longest: int, vocabulary: int, generator: np.random.Generator
) -> FeatureSet:
    tokens = lengths(mixed, rows, longest, generator).astype(np.int32)
    classes = CLASSES.get(mixed.task)

    def feature(number: int, length: int) -> Feature:
        ids = generator.integers(FIRST_ID, vocabulary, length).astype(np.int32)
        labels = generator.integers(0, classes or length, 1 if classes else 2)
        return Feature(ids, (np.arange(length) > length // 3).astype(np.int8), labels, number)

    folder.mkdir(parents=True)
    encoded = (feature(number, length) for number, length in enumerate(tokens.tolist()))
    with ArrowWriter(folder / "features.arrow", feature_schema(pa.int32()), feature_columns) as features:
        for row in encoded:
            features.write(row)
    ids = pa.schema({"id": pa.string()})
    with ArrowWriter(folder / "examples.arrow", ids, lambda rows, schema: [pa.array(rows)]) as examples:
        for number in range(rows):
            examples.write(str(number))
    np.save(folder / "lengths.npy", tokens)
    note(folder, key=name, examples=rows, features=rows)
    return FeatureSet(name, folder, name)
