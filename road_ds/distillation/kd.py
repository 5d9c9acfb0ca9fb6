"""KD and Weighted KD (ROaD, section 2.2 and Algorithm 2)."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from road_kernels import kd_loss, weights_from_correctness

from road_ds.common.errors import RoadError
from road_ds.data.batch import IGNORED
from road_ds.distillation.objective import Taught, absent, divergence
from road_ds.distillation.schedule import Schedule, at
from road_ds.tasks.outputs import Outputs


class KD(Taught):
    """(1 - weight) CE + weight kl_scale KL(mean of the teachers || student), at a temperature (ROaD, section 2.2)."""

    objective: Literal["kd"]
    temperature: Annotated[float, Field(gt=0)] | Schedule = 5.0
    weight: Annotated[float, Field(ge=0, le=1)] | Schedule = 0.7
    kl_scale: Literal["t2"] | Annotated[float, Field(gt=0)] = "t2"

    @model_validator(mode="after")
    def schedules_stay_in_range(self):
        ends = [self.temperature.start, self.temperature.end] if isinstance(self.temperature, Schedule) else [1.0]
        if min(ends) <= 0:
            raise ValueError("temperature must stay above 0")
        if isinstance(self.weight, Schedule) and max(self.weight.start, self.weight.end) > 1:
            raise ValueError("weight must stay between 0 and 1")
        return self

    def hard_share(self, progress):
        return 1 - at(self.weight, progress)

    def of_classes(self, outputs, teachers, labels, progress):
        found = kd_loss(outputs.logits, labels=labels, **self.kernel(outputs, teachers, labels, progress))
        return self.loss(found, outputs, labels, progress)

    def of_unlabelled(self, outputs, teachers, progress):
        return divergence(self, outputs, teachers, at(self.temperature, progress), self.kl_scale).mean()

    def kernel(self, outputs, teachers, labels, progress) -> dict[str, Any]:
        return {
            "teacher": teachers,
            "temperature": at(self.temperature, progress),
            "weight": at(self.weight, progress),
            "kl_scale": self.kl_scale,
            "lengths": outputs.lengths,
            "ignore_index": IGNORED,
            "impl": self.kernels,
        }


class WeightedKD(KD):
    """KD in which a teacher that is wrong about a row counts `wrong_scale` there, and the right ones more (Algorithm 2).

    correctness: a span's teacher is right where start and end both are ("joint"), or position by position. Of several labels
    each is a row of its own.
    """

    objective: Literal["weighted_kd"]  # type: ignore[assignment]
    weight: Annotated[float, Field(ge=0, le=1)] | Schedule = 0.9
    wrong_scale: Annotated[float, Field(ge=0)] = 0.75
    correctness: Literal["joint", "per_position"] = "joint"

    def kernel(self, outputs, teachers, labels, progress):
        options = super().kernel(outputs, teachers, labels, progress)
        if outputs.joint == 1 or self.correctness == "per_position":
            return {**options, "wrong_scale": self.wrong_scale}
        right = right_rows(teachers, labels, outputs.lengths).unflatten(1, (-1, outputs.joint)).all(-1)
        right = right.repeat_interleave(outputs.joint, dim=1)
        return {**options, "teacher_weights": weights_from_correctness(right, self.wrong_scale)}

    def fits(self, dataset, number):
        if number > 1 and self.wrong_scale >= number / (number - 1):
            raise RoadError(
                f"road.distill.wrong_scale: got {self.wrong_scale}; with {number} teachers of {dataset} it must stay below "
                f"{number / (number - 1):.4g}, or a lone right teacher would count for nothing"
            )


def right_rows(logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """[teachers, rows] whether the argmax of [teachers, rows, classes] is the label."""
    outside = absent(Outputs(logits[0], lengths))
    scores = logits if outside is None else logits.masked_fill(outside, float("-inf"))
    return scores.argmax(-1) == labels
