"""Where the rows of one part of a data set are, and which of them are held out."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from road_ds.common.errors import RoadError
from road_ds.common.hub import local_file
from road_ds.config import catalog
from road_ds.config.road import Columns, DatasetSpec
from road_ds.config.settings import validated
from road_ds.data.files import format_of_texts
from road_ds.data.labels import renamed
from road_ds.data.negatives import with_negatives
from road_ds.data.readers import Example, Reading, choose, stream

Part = Literal["train", "dev"]


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
        """Where a part's rows are. Unless they are trained on or `scored`, they are texts alone: neither labels nor answers are
        looked at, and each line of a .txt is one.

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
            spec = unlabelled(spec)
            if spec.format is None:
                spec = spec.model_copy(update={"format": format_of_texts(str(local_file(source)))})
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
            if example.label is not None and self.spec.label_map:
                example = replace(example, label=renamed(example.label, self.spec.label_map))
            yield example

    def _held_out(self, share: float) -> np.ndarray:
        """The rows on this part's side of a split that keeps each label's share and is always the same for the same rows.

        The source is read once for the labels, so that the rows are never held together.
        """
        numbers, labels = choose(self.source, self.spec)
        return numbers[_side(self.name, labels, share, self.part)]


def unlabelled(spec: DatasetSpec) -> DatasetSpec:
    """The same rows, of which neither labels nor answers are read."""
    columns = {**spec.columns.model_dump(), "label": None, "answers": None}
    return spec.model_copy(update={"columns": Columns(**columns)})


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
    if held >= len(labels):
        raise RoadError(
            f"datasets.{name}.dev: holding out {share:g} of {len(labels)} row{'s' * (len(labels) > 1)} leaves none to train on: "
            "give more rows, a smaller share, or a file"
        )
    strata = _strata(labels, min(held, len(labels) - held))
    train, dev = train_test_split(range(len(labels)), test_size=share, random_state=0, stratify=strata)
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
