"""ALP-KD: each layer of the student attends to the teacher's."""

from typing import Literal

import torch

from road_ds.distillation.layers.base import Comparison, LayerMethod, mean_over_layers, projection
from road_ds.distillation.layers.maps import buckets
from road_ds.models.states import Shape, Wanted


class ALP(LayerMethod):
    """The squared error between the student's vectors and the teacher's, weighted by attention over its layers (ALP-KD).

    buckets: the layers that one of the student attends to: all, or a share of them without overlap (ALP-NO) or with it
    (ALP-PO); scaled: the dot product by 1 / sqrt(width), without which a wide encoder picks one layer alone.
    """

    method: Literal["alp"]
    buckets: Literal["all", "separate", "overlapping"] = "all"
    scaled: bool = False

    def compare(self, student, teacher, seed):
        if self.buckets == "all":
            of = [list(range(1, teacher.layers + 1))] * student.layers
        else:
            of = buckets(student.layers, teacher.layers, self.buckets == "overlapping")
        return Attentive(of, student, teacher, teacher.width**-0.5 if self.scaled else 1.0)


class Attentive(Comparison):
    """The first token's vectors. The mean is over width, rows, layers and teachers."""

    def __init__(self, of: list[list[int]], student: Shape, teacher: Shape, scale: float):
        own, theirs = tuple(range(1, student.layers + 1)), tuple(range(1, teacher.layers + 1))
        super().__init__(student, teacher, Wanted(own, first=True), Wanted(theirs, first=True))
        self.buckets, self.scale = of, scale
        self.projection = projection(student, teacher)

    def forward(self, student, teachers, mask, step):
        terms = []
        for layer, bucket in enumerate(self.buckets, 1):
            own = self.projection(student.hidden[layer]).float()  # [features, width]
            theirs = torch.stack(
                [teachers.hidden[one].float() for one in bucket], dim=-2
            )  # [..., features, layers, width]
            attention = (self.scale * (theirs @ own[..., None]).squeeze(-1)).softmax(-1)  # [..., features, layers]
            combined = (attention[..., None] * theirs).sum(-2)
            terms.append((own - combined).square().mean())
        return mean_over_layers(terms)
