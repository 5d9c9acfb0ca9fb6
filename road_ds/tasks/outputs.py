"""What a model says of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    logits: [rows, classes]; lengths: how many classes of each row are real, [rows], None where all are; layers: how far
    its layers are from the teachers', a number, None where they are not compared; loss: of a
    task that learns from the text alone, None where labels and teachers decide; terms: its parts by name, detached.
    """

    logits: torch.Tensor
    lengths: torch.Tensor | None = None
    layers: torch.Tensor | None = None
    loss: torch.Tensor | None = None
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def halves(self) -> tuple["Outputs", "Outputs"]:
        """What it says of the first half of the rows, and of the second; the term between layers stays with the first."""
        logits = self.logits.chunk(2)
        lengths = (None, None) if self.lengths is None else self.lengths.chunk(2)
        return Outputs(logits[0], lengths[0], self.layers), Outputs(logits[1], lengths[1])
