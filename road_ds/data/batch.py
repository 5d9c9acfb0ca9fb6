"""A feature, and a batch of them: the tensors of one forward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch

from road_ds.data.masking import Generated, Masking
from road_ds.data.packing import Packing

PAD_MULTIPLE = 8  # tokens; half-precision matrix units want it


IGNORED = -100  # the label of a row that has none


@dataclass(frozen=True, slots=True)
class Feature:
    """One row of model input. A span-QA example becomes several, one per window of its context.

    sequences: the tokens of each sequence where it has several behind each other, one for each choice of a question; empty
    where it is one.

    offsets: for span QA the character range of each token in the context, [tokens, 2], -1 outside it; best: whether
    this is the window in which a token has the most context (1 or 0), [tokens]. Both empty otherwise. words: for tags of
    words the first token of each, [words], -1 where none was read; the others are the feature's rows of logits.
    """

    input_ids: np.ndarray | list[int]  # [tokens]
    token_type_ids: np.ndarray | list[int]  # [tokens]
    labels: np.ndarray | list  # [rows of logits that the feature gives]
    example: int
    offsets: np.ndarray | list[int] = ()  # type: ignore[assignment]
    best: np.ndarray | list[int] = ()  # type: ignore[assignment]
    words: np.ndarray | list[int] = ()  # type: ignore[assignment]
    sequences: np.ndarray | list[int] = ()  # type: ignore[assignment]

    def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types of each of its sequences."""
        ids, types, ends = np.asarray(self.input_ids), np.asarray(self.token_type_ids), np.cumsum(self.sequences)
        if len(ends) == 0:
            return [(ids, types)]
        return list(zip(np.split(ids, ends[:-1]), np.split(types, ends[:-1]), strict=True))


@dataclass(frozen=True)
class Batch:
    """Padded features of one data set. Labels lie flat, one per row of logits.

    Where features have several sequences, those of all stand where otherwise the features do: [features] then is [sequences].
    """

    dataset: str
    features: np.ndarray  # [features] their numbers in the data set
    input_ids: torch.Tensor  # [features, tokens]
    attention_mask: torch.Tensor  # [features, tokens]
    token_type_ids: torch.Tensor  # [features, tokens]
    lengths: torch.Tensor  # [features]
    labels: torch.Tensor  # [rows]
    full: bool = False  # no row is padded: known to the host, which need not ask the device
    packing: Packing | None = None  # where the rows lie when the encoder runs them as one sequence
    masking: Masking | None = None  # which tokens a generator shall replace
    generated: Generated | None = None  # what it has replaced
    tokens: tuple[int, ...] = ()  # [features] the lengths once more, known to the host
    words: torch.Tensor | None = None  # [rows] the first token of each word, in the flattened padded batch
    share: float = (
        1.0  # of the mean over its rows of logits in that over a pass's: they over a micro-batch's on average
    )
    weights: torch.Tensor | None = None  # [rows] how much each label counts; None: all alike
    sequences: tuple[int, ...] = ()  # how many each feature has; empty where each is one
    added: torch.Tensor | None = None  # [features, tokens, width] what a reader's word embeddings are moved by
    reading: int | None = None  # which of the step's forward passes reads it, with others; None: one of its own
    original: "Batch | None" = None  # the first half of the rows, where the others were generated from them

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The same batch with every tensor changed."""
        tensors: dict[str, Any] = {f.name: v for f in fields(self) if torch.is_tensor(v := getattr(self, f.name))}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        packing, masking = self.packing and self.packing.map(change), self.masking and self.masking.map(change)
        return replace(self, **changed, packing=packing, masking=masking)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def joined(self, other: "Batch") -> "Batch":
        """The rows of this batch, then those that were generated from them; both equally wide, on the same device."""
        both = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        tensors: dict[str, Any] = {name: torch.cat(pair) for name, pair in both.items() if torch.is_tensor(pair[0])}
        packing = self.packing and other.packing and self.packing.joined(other.packing)
        if self.words is not None and other.words is not None:
            tensors["words"] = torch.cat([self.words, other.words + self.input_ids.numel()])
        features, tokens = np.concatenate(both["features"]), self.tokens + other.tokens
        sequences = self.sequences + other.sequences
        return replace(
            self, **tensors, features=features, tokens=tokens, sequences=sequences, packing=packing, original=self
        )

    def keys(self) -> list[tuple[int, ...]]:
        """What tells each sequence from all others of its data set: its feature's number, and its place there if it has several."""
        if not self.sequences:
            return [(feature,) for feature in self.features.tolist()]
        pairs = zip(self.features.tolist(), self.sequences, strict=True)
        return [(feature, place) for feature, count in pairs for place in range(count)]

    def pinned(self) -> "Batch":
        """The same batch in memory that a GPU can copy from while the host goes on."""
        return self.map(torch.Tensor.pin_memory)


class Features(Protocol):
    """Numbered features of one data set, wherever they are kept."""

    name: str

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def rows(self) -> np.ndarray: ...  # of logits, of each feature

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Feature: ...


def collate(
    source: Features,
    rows: Sequence[int] | np.ndarray,
    pad_id: int,
    *,
    width: Callable[[int], int] | None = None,
    packed: bool = False,
) -> Batch:
    """A batch of the given features, padded on the right.

    width: the tokens of a padded row by those of the longest, by default that rounded up to a multiple of 8; packed: the encoder shall run the rows as one
    sequence without their padding.
    """
    features = [source[i] for i in rows]
    parts = [part for feature in features for part in feature.parts()]
    lengths = np.array([len(own) for own, _ in parts])
    wide = (width or rounded_up)(int(lengths.max()))
    ids = np.full((len(parts), wide), pad_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for i, (own, kinds) in enumerate(parts):
        ids[i, : lengths[i]] = own
        types[i, : lengths[i]] = kinds
    labels = np.concatenate([f.labels for f in features])
    words = [
        row * wide + np.asarray(f.words)[np.asarray(f.words) >= 0] for row, f in enumerate(features) if len(f.words)
    ]
    return Batch(
        dataset=source.name,
        features=np.asarray(rows),
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy((np.arange(wide) < lengths[:, None]).astype(np.int64)),
        token_type_ids=torch.from_numpy(types),
        lengths=torch.from_numpy(lengths),
        labels=torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64)),
        full=bool((lengths == wide).all()),
        packing=Packing.of(lengths, wide) if packed else None,
        tokens=tuple(lengths.tolist()),
        sequences=tuple(len(f.sequences) for f in features) if len(features[0].sequences) else (),
        words=torch.from_numpy(np.concatenate(words).astype(np.int64)) if words else None,
    )


def rounded_up(tokens: int, multiple: int = PAD_MULTIPLE) -> int:
    """The next multiple of some tokens."""
    return -(-tokens // multiple) * multiple
