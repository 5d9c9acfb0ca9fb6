"""Hidden states against a teacher's (ROaD, blog 2; TinyBERT)."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from road_ds.config.settings import Strict


class HiddenKD(Strict):
    """An added term: the student's hidden states, projected, against an online teacher's (ROaD blog 2; TinyBERT)."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    layers: Literal["uniform", "last"] = "uniform"

    def pairs(self, student: int, teacher: int) -> list[tuple[int, int]]:
        """Which layers are compared, (student, teacher), counted from 1. Uniform: 12 with 24, 11 with 22, ...

        Of a shallower teacher a layer stands for several of the student's, none for its embeddings.
        """
        first = 1 if self.layers == "uniform" else student
        return [(layer, max(1, round(layer * teacher / student))) for layer in range(first, student + 1)]


def hidden_loss(
    student: tuple[torch.Tensor, ...], teachers: tuple[tuple[torch.Tensor, ...], ...], mask: torch.Tensor
) -> torch.Tensor:
    """The mean squared error of hidden states: over width and a row's tokens, then rows, layers and teachers."""
    share = mask / mask.sum(1, keepdim=True)
    terms = [
        ((own.float() - other.float()).square().mean(-1) * share).sum(1).mean()
        for states in teachers
        for own, other in zip(student, states, strict=True)
    ]
    return torch.stack(terms).mean()
