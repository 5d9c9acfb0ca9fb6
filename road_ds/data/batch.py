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
    masking: Masking | None = None  # which tokens a generator shall replace
    generated: Generated | None = None  # what it has replaced
    tokens: tuple[int, ...] = ()  # [features] the lengths once more, known to the host
    words: torch.Tensor | None = None  # [rows] the first token of each word, in the flattened padded batch
    share: float = (
        1.0  # of the mean over its rows of logits in that over a pass's: they over a micro-batch's on average
    )
    weights: torch.Tensor | None = None  # [rows] how much each label counts; None: all alike
    added: torch.Tensor | None = None  # [features, tokens, width] what a reader's word embeddings are moved by
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
        return replace(self, **tensors, features=features, tokens=tokens, packing=packing, original=self)

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
    words = [
        row * width + np.asarray(f.words)[np.asarray(f.words) >= 0] for row, f in enumerate(features) if len(f.words)
    ]
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
        tokens=tuple(lengths.tolist()),
        words=torch.from_numpy(np.concatenate(words).astype(np.int64)) if words else None,
    )


def rounded_up(tokens: int, multiple: int = PAD_MULTIPLE) -> int:
    """The next multiple of some tokens."""
    return -(-tokens // multiple) * multiple
