"""What a model says of a batch."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    logits: [rows, classes]; lengths: how many classes of each row are real, [rows], None where all are; hidden: the
    projected hidden states that a teacher's are compared with, each [features, tokens, teacher width].
    """

    logits: torch.Tensor
    lengths: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()
