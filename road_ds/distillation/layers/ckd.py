"""CKD: a teacher's layers put together, projected to what one of the student shall be."""

from typing import Literal

import torch
from torch import nn

from road_ds.distillation.layers.base import Comparison, LayerMethod, mean_over_layers
from road_ds.distillation.layers.maps import buckets
from road_ds.models.states import Shape, Wanted


class CKD(LayerMethod):
    """The squared error between the student's vectors and a learned projection of a bucket of the teacher's (CKD).

    buckets: without overlap (NO) or with it (PO).
    """

    method: Literal["ckd"]
    buckets: Literal["separate", "overlapping"] = "separate"

    def compare(self, student, teacher, seed):
        return Combined(buckets(student.layers, teacher.layers, self.buckets == "overlapping"), student, teacher)


class Combined(Comparison):
    """The first token's vectors of a bucket one behind the other, through a linear layer for each bucket.

    The mean is over width, rows, layers and teachers.
    """

    def __init__(self, of: list[list[int]], student: Shape, teacher: Shape):
        own, theirs = tuple(range(1, student.layers + 1)), tuple(range(1, teacher.layers + 1))
        super().__init__(student, teacher, Wanted(own, first=True), Wanted(theirs, first=True))
        self.buckets = of
        self.projections = nn.ModuleList(nn.Linear(len(bucket) * teacher.width, student.width) for bucket in of)

    def forward(self, student, teachers, mask, step):
        terms = []
        for layer, (bucket, project) in enumerate(zip(self.buckets, self.projections, strict=True), 1):
            own = student.hidden[layer]
            together = torch.cat([teachers.hidden[theirs].to(own.dtype) for theirs in bucket], dim=-1)
            terms.append((own.float() - project(together).float()).square().mean())
        return mean_over_layers(terms)
