"""What a model says of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    logits: [rows, classes]; lengths: how many classes of each row are real, [rows], None where all are; layers: how far
    its layers are from the teachers', a number, None where they are not compared; loss: of a
    task that learns from the text alone, None where labels and teachers decide; terms: its parts by name, detached; joint: so
    many rows behind each other are one answer, right where all are; weights: how much each row's label counts, [rows], None
    where all count alike.
    """

    logits: torch.Tensor
    lengths: torch.Tensor | None = None
    layers: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)
    joint: int = 1
    weights: torch.Tensor | None = None

    def halves(self) -> tuple["Outputs", "Outputs"]:
        """What it says of the first half of the rows, and of the second; the term between layers stays with the first."""
        logits = self.logits.chunk(2)
        lengths = (None, None) if self.lengths is None else self.lengths.chunk(2)
        weights = None if self.weights is None else self.weights.chunk(2)[0]
        first, second = (Outputs(*half, joint=self.joint) for half in zip(logits, lengths, strict=True))
        return replace(first, layers=self.layers, weights=weights), second
