"""Hidden states of all tokens, layer by layer (ROaD, blog 2)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from road_ds.config.settings import Strict
from road_ds.distillation.layers import maps
from road_ds.distillation.layers.base import Comparison, LayerMethod, mean_over_layers, token_error
from road_ds.distillation.layers.maps import Pair, Pairs
from road_ds.models.states import Shape, Wanted

MAPS = {"uniform": maps.uniform, "last": maps.top}


class Hidden(LayerMethod):
    """The squared error between a teacher's hidden states and a learned projection of the student's."""

    method: Literal["hidden"]
    map: Literal["uniform", "last"] | Pairs = "uniform"

    first: ClassVar[bool] = False

    def compare(self, student, teacher, seed):
        return HiddenStates(maps.chosen(self.map, MAPS, student.layers, teacher.layers), student, teacher)


class HiddenStates(Comparison):
    """One linear projection serves all layers, whatever the widths (TinyBERT)."""

    def __init__(self, pairs: list[Pair], student: Shape, teacher: Shape):
        own, theirs = zip(*pairs, strict=True)
        super().__init__(student, teacher, Wanted(own), Wanted(theirs))
        self.pairs = pairs
        self.projection = nn.Linear(student.width, teacher.width)

    def forward(self, student, teachers, mask, step):
        return mean_over_layers([
            token_error(self.projection(student.hidden[own]), teachers.hidden[theirs], mask)
            for own, theirs in self.pairs
        ])  # fmt: skip


class HiddenKD(Strict):
    """The older words for the method `hidden`."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    layers: Literal["uniform", "last"] = "uniform"

    def method(self) -> Hidden:
        """The same in today's."""
        return Hidden(method="hidden", weight=self.weight, map=self.layers)
