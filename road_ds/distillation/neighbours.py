"""The neighbours of a data set's rows among unlabelled texts, on disk: which they are, and what they were found from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, field_validator, model_validator

from road_ds.common.errors import RoadError
from road_ds.common.sealed import Damaged, Manifest, verify
from road_ds.config.settings import Strict
from road_ds.data.features import FeatureSet

TEXTS, TABLE, SIMILARITY = "texts.jsonl", "neighbours.npy", "similarity.npy"


class NeighbourKD(Strict):
    """Neighbours of a data set's rows, and how many of them are learned from at each visit of a row (Minimax-kNN-KD).

    text: file or files of unlabelled texts; column: where tables and JSON lines have them, by default a well-known name; by:
    "tfidf", or the encoder whose mean-pooled states are compared; k: neighbours of a row; keep: those learned from, on
    which the student is furthest from the teachers; weight: the factor of their loss.
    """

    text: str | Annotated[list[str], Field(min_length=1)]
    column: str | int | None = None
    by: str = "tfidf"
    k: Annotated[int, Field(ge=1, le=1000)] = 8
    keep: Annotated[int, Field(ge=1)] = 4
    weight: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("text")
    @classmethod
    def each_file_once(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError(f"a file is named twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def no_more_are_kept_than_there_are(self):
        if self.keep > self.k:
            raise ValueError(f"keep {self.keep} of k {self.k} neighbours: keep must be at most k")
        return self

    @property
    def files(self) -> list[str]:
        """The files of the unlabelled texts."""
        return [self.text] if isinstance(self.text, str) else self.text


def texts_of(dataset: str) -> str:
    """What the texts of a data set's neighbours are called: no name that a user may give."""
    return f"{dataset}~neighbours"


class Origin(Strict):
    """What the neighbours of a data set depend on."""

    rows: str  # hash of the data set's rows in order
    text: str  # hash of the unlabelled texts' files, and how they are read
    by: str  # "tfidf", or hash of the encoder's weights, tokenizer and length
    k: int

    def differences(self, other: "Origin") -> list[str]:
        """In what two origins differ, in words."""
        words = {"rows": "rows, or another order of them", "text": "text", "by": "encoder", "k": "k"}
        return [word for key, word in words.items() if getattr(self, key) != getattr(other, key)]


class Retrieved(Manifest):
    """What a folder of neighbours says of itself."""

    origin: Origin
    searched: int  # distinct texts


@dataclass(frozen=True)
class Neighbours:
    """The neighbours of a data set's rows. texts: those that are a neighbour of any, encoded for the data set's task;
    table: [rows, k] their numbers there, the nearest first."""

    texts: FeatureSet
    table: np.ndarray
    settings: NeighbourKD
    identity: str  # changes with the texts and the table


def open_folder(
    folder: Path, origin: Origin, dataset: str, verified: bool = True, config: str = "FILE"
) -> tuple[Retrieved, np.ndarray]:
    """The manifest and table of a folder of neighbours. RoadError names what is missing, damaged or made from something else.

    verified: compare the files' hashes, not their sizes alone; config: the run's file, for the command that finds them.
    """
    again = f"; run `python -m road_ds neighbours --deepspeed_config {config}`"
    if not folder.exists():
        raise RoadError(f"{folder}: the neighbours of {dataset} are not there{again}")
    try:
        found = verify(folder, Retrieved, verified)
    except Damaged as error:
        raise RoadError(f"{error}{again}") from None
    if different := found.origin.differences(origin):
        raise RoadError(f"{folder}: the neighbours of {dataset} are of another {', another '.join(different)}{again}")
    return found, np.load(folder / TABLE, mmap_mode="r")
