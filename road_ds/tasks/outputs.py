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

    def halves(self) -> tuple["Outputs", "Outputs"]:
        """What it says of the first half of the rows, and of the second."""
        logits = self.logits.chunk(2)
        lengths = (None, None) if self.lengths is None else self.lengths.chunk(2)
        hidden = [tuple(state.chunk(2)[half] for state in self.hidden) for half in (0, 1)]
        return Outputs(logits[0], lengths[0], hidden[0]), Outputs(logits[1], lengths[1], hidden[1])
