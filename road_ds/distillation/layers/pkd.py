"""The first token's vectors, normalised, layer by layer: PKD, and RKD with layers drawn at random."""

from typing import Literal

import numpy as np
from torch.nn import functional as F

from road_ds.distillation.layers import maps
from road_ds.distillation.layers.base import Comparison, LayerMethod, mean_over_layers, projection
from road_ds.distillation.layers.maps import Pair, Pairs
from road_ds.models.states import Shape, Wanted

MAPS = {"skip": maps.skip, "last": maps.last}
DRAWS = 2  # the stream of random numbers beside those of the data plan (0 and 1)


class PKD(LayerMethod):
    """The squared error between normalised vectors; the last layers, which the predictions train, are left out (PKD)."""

    method: Literal["pkd"]
    map: Literal["skip", "last"] | Pairs = "skip"

    def compare(self, student, teacher, seed):
        return Patient(maps.chosen(self.map, MAPS, student.layers, teacher.layers), student, teacher)


class RKD(LayerMethod):
    """As PKD, with as many of the teacher's layers as are needed, drawn anew in each step, in rising order."""

    method: Literal["rkd"]

    def compare(self, student, teacher, seed):
        maps.below_the_last(student.layers, teacher.layers, student.layers - 1)
        return Random(student, teacher, seed)


class Normalised(Comparison):
    """The first token's vectors, each of length 1. The mean is over width, rows, layers and teachers, as in PKD's own code."""

    def __init__(self, student: Shape, teacher: Shape, own: tuple[int, ...], theirs: tuple[int, ...]):
        super().__init__(student, teacher, Wanted(own, first=True), Wanted(theirs, first=True))
        self.projection = projection(student, teacher)

    def forward(self, student, teachers, mask, step):
        return mean_over_layers([
            (
                F.normalize(self.projection(student.hidden[own]).float(), dim=-1)
                - F.normalize(teachers.hidden[theirs].float(), dim=-1)
            ).square().mean()
            for own, theirs in self.pairs_at(step)
        ])  # fmt: skip

    def pairs_at(self, step: int) -> list[Pair]:
        """The pairs of layers that are compared in a step."""
        raise NotImplementedError


class Patient(Normalised):
    """The same pairs in every step."""

    def __init__(self, pairs: list[Pair], student: Shape, teacher: Shape):
        super().__init__(student, teacher, *zip(*pairs, strict=True))
        self.pairs = pairs

    def pairs_at(self, step):
        return self.pairs


class Random(Normalised):
    """Which layers are compared is a pure function of (seed, step): the same on all processes and after a resume."""

    def __init__(self, student: Shape, teacher: Shape, seed: int):
        super().__init__(student, teacher, tuple(range(1, student.layers)), tuple(range(1, teacher.layers)))
        self.seed = seed

    def pairs_at(self, step):
        generator = np.random.default_rng([self.seed, DRAWS, step])
        drawn = generator.choice(self.theirs.hidden, size=len(self.own.hidden), replace=False)
        return list(zip(self.own.hidden, sorted(drawn.tolist()), strict=True))
