"""What a model says of a batch."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    logits: [rows, classes]; lengths: how many classes of each row are real, [rows], None where all are; layers: how far
    its layers are from the teachers', a number, None where they are not compared.
    """

    logits: torch.Tensor
    lengths: torch.Tensor | None = None
    layers: torch.Tensor | None = None
