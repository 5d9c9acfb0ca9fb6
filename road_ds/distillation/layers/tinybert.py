"""TinyBERT's layers: embeddings, hidden states, attention scores."""

from typing import ClassVar, Literal

from torch import nn

from road_ds.common.errors import RoadError
from road_ds.distillation.layers.base import Comparison, LayerMethod, mean_over_layers, score_error, token_error
from road_ds.distillation.layers.hidden import MAPS
from road_ds.distillation.layers.maps import WHERE, Pair, Pairs, chosen
from road_ds.models.states import Shape, Wanted


class TinyBERT(LayerMethod):
    """Squared errors of the embeddings, of hidden states and of attention scores before the softmax, added (TinyBERT)."""

    method: Literal["tinybert"]
    map: Literal["uniform", "last"] | Pairs = "uniform"

    first: ClassVar[bool] = False

    def compare(self, student, teacher, seed):
        if student.heads != teacher.heads:
            raise RoadError(
                f"{WHERE}: tinybert compares attention head by head, which nothing can project: the student has "
                f"{student.heads} heads, the teacher {teacher.heads}; take a student with as many, or another method"
            )
        return Transformers(chosen(self.map, MAPS, student.layers, teacher.layers), student, teacher)


class Transformers(Comparison):
    """One projection for the hidden states and one for the embeddings, whatever the widths.

    The means are over width and a row's tokens, over heads and a row's pairs of tokens; then rows, layers and teachers.
    """

    def __init__(self, pairs: list[Pair], student: Shape, teacher: Shape):
        own, theirs = zip(*pairs, strict=True)
        super().__init__(student, teacher, Wanted((0, *own), scores=own), Wanted((0, *theirs), scores=theirs))
        self.pairs = pairs
        self.projection = nn.Linear(student.width, teacher.width)
        self.embedding = nn.Linear(student.width, teacher.width)

    def forward(self, student, teachers, mask, step):
        embedded = token_error(self.embedding(student.hidden[0]), teachers.hidden[0], mask)
        states = [
            token_error(self.projection(student.hidden[own]), teachers.hidden[theirs], mask)
            for own, theirs in self.pairs
        ]
        scores = [score_error(student.scores[own], teachers.scores[theirs], mask) for own, theirs in self.pairs]
        return embedded + mean_over_layers(states) + mean_over_layers(scores)
