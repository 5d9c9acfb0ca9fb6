"""Masked tokens: which tokens of a batch a generator has to guess, and the noise that it draws its guesses with."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

SPECIAL, BEGINS, CONTINUES = (
    0,
    1,
    2,
)  # what an entry of a vocabulary is: no text, the first piece of a word, another one
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Masking:
    """The masked tokens of a batch, in the order of its rows.

    vocabulary: ids below it may be drawn; weight: what a masked token's loss counts in the micro-batch, token_weight: what
    any token's does. Both make the mean over micro-batches the mean over a pass.
    """

    places: torch.Tensor  # [masked] in the flattened padded batch
    shown: torch.Tensor  # [masked] what the generator reads there: the mask, or the token itself
    noise: torch.Tensor  # [masked, blocks + block] Gumbel noise, as `draw` takes it
    vocabulary: int
    weight: float
    token_weight: float

    @classmethod
    def idle(cls, device: torch.device) -> "Masking":
        """The first token of a batch, of no weight."""
        first = torch.zeros(1, dtype=torch.long, device=device)
        return cls(first, first, torch.zeros(1, sum(blocks_of(1)), device=device), 1, 0.0, 0.0)

    def map(self, change: Any) -> "Masking":
        """The same masking with every tensor changed, for example moved."""
        tensors: dict[str, Any] = {f.name: v for f in fields(self) if torch.is_tensor(v := getattr(self, f.name))}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class Generated:
    """What a generator made of a batch.

    loss: the sum of `losses`, which is differentiated; right: whether the likeliest token is the masked one, None in training.
    """

    replaced: torch.Tensor  # [features, tokens] bool, where another token stands now
    loss: torch.Tensor
    losses: torch.Tensor  # [masked] cross-entropy, detached
    right: torch.Tensor | None  # [masked] bool


def masked_count(lengths: np.ndarray | int, share: float) -> Any:
    """How many tokens of rows of these lengths are masked: a share of all, at least one."""
    return np.maximum(1, np.rint(np.asarray(lengths) * share)).astype(np.int64)


def choose(kinds: np.ndarray, count: int, whole_words: bool, generator: np.random.Generator) -> np.ndarray:
    """The places of `count` tokens of a row to mask, ascending; fewer where the row has not so many.

    kinds: what each token is, [tokens]. whole_words: all pieces of a word or none; a word that would be too many is left out
    unless it is the only choice.
    """
    text = np.flatnonzero(kinds != SPECIAL)
    if not whole_words:
        return np.sort(generator.permutation(text)[:count])
    begins = (kinds[text] == BEGINS) | (np.diff(text, prepend=-2) > 1)  # a segment may begin inside a word
    words = np.split(text, np.flatnonzero(begins)[1:])
    chosen: list[np.ndarray] = []
    room = count
    for word in (words[i] for i in generator.permutation(len(words))):
        if len(word) <= room:
            chosen.append(word)
            room -= len(word)
    return np.sort(np.concatenate(chosen or [min(words, key=len)]))


def blocks_of(vocabulary: int) -> tuple[int, int]:
    """How `draw` cuts a vocabulary: blocks, and entries in each (the last may have fewer)."""
    size = max(1, round(vocabulary**0.5))
    return -(-vocabulary // size), size


def gumbel(shape: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Standard Gumbel noise in float32: minus the logarithm of an exponential."""
    return -np.log(np.maximum(generator.standard_exponential(tuple(shape), dtype=np.float32), TINY))


def draw(logits: torch.Tensor, noise: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """An entry of each row drawn by its softmax over the first `vocabulary` classes, [rows]; logits: [rows, classes].

    Gumbel-max in two steps: a block of the vocabulary by the sum of its shares, then an entry in it. Where the largest
    of some logits with their noise lies is such a draw, and it is independent of how large it is, so the result is that of
    one noise for each class, at the cost of about 2 sqrt(classes) numbers. noise: [rows, blocks + block].
    """
    blocks, size = blocks_of(vocabulary)
    logits = logits.detach()[:, :vocabulary].float()
    whole = vocabulary // size * size
    sums = logits[:, :whole].unflatten(1, (-1, size)).logsumexp(2)
    if whole < vocabulary:
        sums = torch.cat([sums, logits[:, whole:].logsumexp(1, keepdim=True)], dim=1)
    block = (sums + noise[:, :blocks]).argmax(1, keepdim=True)
    entries = block * size + torch.arange(size, device=logits.device)
    inside = logits.gather(1, entries.clamp(max=vocabulary - 1)).masked_fill(entries >= vocabulary, -torch.inf)
    return (block * size).squeeze(1) + (inside + noise[:, blocks:]).argmax(1)
