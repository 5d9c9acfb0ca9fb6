"""What a model says of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    logits: [rows, classes]; lengths: how many classes of each row are real, [rows], None where all are; hidden: the
    projected hidden states that a teacher's are compared with, each [features, tokens, teacher width]; loss: of a task that
    learns from the text alone, None where labels and teachers decide; terms: its parts by name, detached.
    """

    logits: torch.Tensor
    lengths: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()
    loss: torch.Tensor | None = None
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)
