"""Objectives: what a batch's logits, labels and teachers say about the model, as one number to go down.

Each is normalised once, over the rows of a micro-batch, and holds its settings: the block `road.distill`. A new one is a
class here and a line in OBJECTIVES.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from road_kernels import check_against_reference, combine_teachers, kd_loss, weights_from_correctness
from torch.nn import functional as F

from road_ds.config import RoadConfig, Strict, nearest, validated
from road_ds.data.features import IGNORED, Batch
from road_ds.errors import RoadError
from road_ds.strict_json import quote


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch.

    logits: [rows, classes]; lengths: how many classes of each row are real, [rows], None where all are; hidden: the
    projected hidden states that a teacher's are compared with, each [features, tokens, teacher width].
    """

    logits: torch.Tensor
    lengths: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Teaching:
    """What the teachers say of a batch. logits: [teachers, rows, classes], raw; hidden: per teacher and layer."""

    logits: torch.Tensor
    hidden: tuple[tuple[torch.Tensor, ...], ...] = ()


Teachers = Callable[[Batch], Teaching | None]  # None for a data set without a teacher


@dataclass(frozen=True)
class Loss:
    """total: what is differentiated; hard, soft: the loss against labels and against teachers, unweighted, detached."""

    total: torch.Tensor
    hard: torch.Tensor | None = None
    soft: torch.Tensor | None = None


class Schedule(Strict):
    """A number that moves from `start` to `end` with the progress of the run."""

    start: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """The value at a progress in [0, 1]."""
        share = progress if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * share


def at(value: "float | Schedule", progress: float) -> float:
    """A setting's value at a progress in [0, 1]; a plain number is constant."""
    return value.at(progress) if isinstance(value, Schedule) else value


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


class Objective(Strict):
    """Hard labels alone, and what all objectives share. Regression is by squared error throughout."""

    objective: str = "supervised"

    def __call__(self, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float) -> Loss:
        """The loss of a batch at a progress in [0, 1]; against the labels alone where the data set has no teacher."""
        return supervised(outputs, batch.labels)

    def hard_share(self, progress: float) -> float:
        """The factor of the loss against the labels in the total."""
        return 1.0


class Fused(Objective):
    """What objectives on `road_kernels.kd_loss` share: which implementation computes it, and what if it is wrong."""

    kernels: Literal["auto", "triton", "torch"] = "auto"
    on_mismatch: Literal["reference", "stop"] = "reference"

    def kernel(
        self, outputs: Outputs, teachers: torch.Tensor | None, labels: torch.Tensor, progress: float
    ) -> dict[str, Any] | None:
        """The arguments of `kd_loss` beside student and labels; None where it is not used."""
        raise NotImplementedError

    def check(self, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float) -> None:
        """KernelMismatch where the kernels disagree with their definition on this batch."""
        if batch.labels.is_floating_point():
            return
        teachers = teaching.logits if teaching is not None else None
        if arguments := self.kernel(outputs, teachers, batch.labels, progress):
            check_against_reference(outputs.logits, arguments.pop("teacher"), batch.labels, **arguments)


class Taught(Fused):
    """What objectives with teachers share: where the teachers' logits come from, and the term on hidden states."""

    teachers: dict[str, Annotated[list[str], Field(min_length=1)]]
    source: Literal["cached", "online"] = "cached"
    dtype: Literal["float16", "float32"] = "float16"
    cache: str | None = None
    hidden: HiddenKD | None = None

    @model_validator(mode="after")
    def hidden_states_are_not_cached(self):
        if self.hidden is not None and self.source != "online":
            raise ValueError('hidden compares hidden states, which are not cached: set source to "online"')
        return self

    def __call__(self, outputs, teaching, batch, progress):
        if teaching is None:
            return supervised(outputs, batch.labels)
        loss = self.of_values if batch.labels.is_floating_point() else self.of_classes
        found = loss(outputs, teaching.logits, batch.labels, progress)
        if self.hidden is None:
            return found
        added = self.hidden.weight * hidden_loss(outputs.hidden, teaching.hidden, batch.attention_mask)
        return Loss(found.total + added, found.hard, found.soft)

    def check(self, outputs, teaching, batch, progress):
        if teaching is not None:
            super().check(outputs, teaching, batch, progress)

    def of_classes(self, outputs: Outputs, teachers: torch.Tensor, labels: torch.Tensor, progress: float) -> Loss:
        """The loss over classes; teachers: [teachers, rows, classes]."""
        raise NotImplementedError

    def of_values(self, outputs: Outputs, teachers: torch.Tensor, labels: torch.Tensor, progress: float) -> Loss:
        """The loss of a regression: squared errors against the gold value and the teachers' mean."""
        values = outputs.logits.float().squeeze(-1)
        hard, soft = F.mse_loss(values, labels.float()), F.mse_loss(values, teachers.float().mean(0).squeeze(-1))
        share = self.hard_share(progress)
        return Loss(share * hard + (1 - share) * soft, hard.detach(), soft.detach())

    def fits(self, dataset: str, number: int) -> None:
        """RoadError where the settings do not hold for so many teachers of a data set."""


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
        return Loss(found.total, found.hard.mean(), found.soft.mean())

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

    correctness: a span's teacher is right where start and end both are ("joint"), or position by position.
    """

    objective: Literal["weighted_kd"]  # type: ignore[assignment]
    weight: Annotated[float, Field(ge=0, le=1)] | Schedule = 0.9
    wrong_scale: Annotated[float, Field(ge=0)] = 0.75
    correctness: Literal["joint", "per_position"] = "joint"

    def kernel(self, outputs, teachers, labels, progress):
        options = super().kernel(outputs, teachers, labels, progress)
        if outputs.lengths is None or self.correctness == "per_position":
            return {**options, "wrong_scale": self.wrong_scale}
        # Rows come in pairs, start and end of a window.
        right = right_rows(teachers, labels, outputs.lengths).unflatten(1, (-1, 2)).all(-1).repeat_interleave(2, dim=1)
        return {**options, "teacher_weights": weights_from_correctness(right, self.wrong_scale)}

    def fits(self, dataset, number):
        if number > 1 and self.wrong_scale >= number / (number - 1):
            raise RoadError(
                f"road.distill.wrong_scale: got {self.wrong_scale}; with {number} teachers of {dataset} it must stay below "
                f"{number / (number - 1):.4g}, or a lone right teacher would count for nothing"
            )


class TeacherAnnealing(Taught):
    """Cross-entropy with s onehot + (1 - s) softmax(mean of the teachers), s from 0 to 1 over the run (BAM)."""

    objective: Literal["teacher_annealing"]

    def hard_share(self, progress):
        return progress

    def of_classes(self, outputs, teachers, labels, progress):
        found = kd_loss(outputs.logits, labels=labels, **self.kernel(outputs, teachers, labels, progress))
        # KL to the teacher is the cross-entropy less the teacher's own entropy, which has no gradient.
        target = combine_teachers(teachers.float(), lengths=outputs.lengths, impl=self.kernels)
        entropy = torch.special.entr(target.softmax(-1)).sum(-1).masked_fill(labels == IGNORED, 0.0)
        counted = (labels != IGNORED).sum().clamp(min=1)
        return Loss(found.total + (1 - progress) * entropy.sum() / counted, found.hard.mean(), found.soft.mean())

    def kernel(self, outputs, teachers, labels, progress) -> dict[str, Any]:
        return {
            "teacher": teachers,
            "temperature": 1.0,
            "weight": 1 - progress,
            "kl_scale": 1,
            "lengths": outputs.lengths,
            "ignore_index": IGNORED,
            "impl": self.kernels,
        }


class AnnealingKD(Taught):
    """Phase 1 of Annealing-KD: squared error to phi x the teachers' logits, phi = 1/T, 2/T, ..., 1 over the run.

    T is `max_temperature`, each phi lasts 1/T of the steps. Phase 2 is a supervised run on what this one exports. The
    mean is over a row's classes, then over rows.
    """

    objective: Literal["annealing_kd"]
    max_temperature: Annotated[int, Field(ge=1)] = 7

    def phi(self, progress: float) -> float:
        """The factor on the teachers' logits at a progress in [0, 1]."""
        return min(int(progress * self.max_temperature + 1e-9) + 1, self.max_temperature) / self.max_temperature

    def hard_share(self, progress):
        return 0.0

    def of_classes(self, outputs, teachers, labels, progress):
        error = outputs.logits.float() - self.phi(progress) * teachers.float().mean(0)
        outside = absent(outputs)
        squares = error.square() if outside is None else error.masked_fill(outside, 0.0).square()
        classes = error.shape[1] if outputs.lengths is None else outputs.lengths
        total = (squares.sum(1) / classes).mean()
        return Loss(total, supervised(outputs, labels).total.detach(), total.detach())

    def of_values(self, outputs, teachers, labels, progress):
        return self.of_classes(outputs, teachers, labels, progress)

    def kernel(self, outputs, teachers, labels, progress):
        return None


class LabelSmoothing(Objective):
    """Cross-entropy with (1 - smoothing) onehot + smoothing uniform over a row's classes; squared error stays."""

    objective: Literal["label_smoothing"]
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1

    def hard_share(self, progress):
        return 1 - self.smoothing

    def __call__(self, outputs, teaching, batch, progress):
        hard = supervised(outputs, batch.labels)
        if batch.labels.is_floating_point():
            return hard
        shares = masked(outputs).log_softmax(-1)
        outside = absent(outputs)
        sums = (shares if outside is None else shares.masked_fill(outside, 0.0)).sum(1)
        rows = -sums / (shares.shape[1] if outputs.lengths is None else outputs.lengths)
        kept = batch.labels != IGNORED
        soft = rows.masked_fill(~kept, 0.0).sum() / kept.sum().clamp(min=1)  # picking rows would wait for the device
        return Loss((1 - self.smoothing) * hard.total + self.smoothing * soft, hard.total.detach(), soft.detach())


class TeacherFree(Fused):
    """KD from a hand-made teacher: `correct` on the label, the rest evenly over a row's other classes (Tf-KD)."""

    objective: Literal["teacher_free"]
    correct: Annotated[float, Field(gt=0, lt=1)] = 0.99
    temperature: Annotated[float, Field(gt=0)] = 20.0
    weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    kl_scale: Literal["t2"] | Annotated[float, Field(gt=0)] = "t2"

    def hard_share(self, progress):
        return 1 - self.weight

    def __call__(self, outputs, teaching, batch, progress):
        if batch.labels.is_floating_point():
            return supervised(outputs, batch.labels)
        found = kd_loss(outputs.logits, labels=batch.labels, **self.kernel(outputs, None, batch.labels, progress))
        return Loss(found.total, found.hard.mean(), found.soft.mean())

    def kernel(self, outputs, teachers, labels, progress) -> dict[str, Any]:
        logits = outputs.logits
        classes = outputs.lengths if outputs.lengths is not None else labels.new_full(labels.shape, logits.shape[1])
        others = torch.log((1 - self.correct) / (classes - 1).clamp(min=1).float())
        teacher = others[:, None].expand(logits.shape).clone()
        teacher.scatter_(1, labels.clamp(min=0)[:, None], math.log(self.correct))
        return {
            "teacher": teacher,
            "temperature": self.temperature,
            "weight": self.weight,
            "kl_scale": self.kl_scale,
            "lengths": outputs.lengths,
            "ignore_index": IGNORED,
            "impl": self.kernels,
        }


OBJECTIVES: dict[str, type[Objective]] = {
    "kd": KD,
    "weighted_kd": WeightedKD,
    "teacher_annealing": TeacherAnnealing,
    "annealing_kd": AnnealingKD,
    "label_smoothing": LabelSmoothing,
    "teacher_free": TeacherFree,
}


def objective_from(config: RoadConfig) -> Objective:
    """The objective of a run: hard labels, or what `road.distill` says. RoadError for what does not hold there."""
    block = config.distill
    if block is None:
        return Objective()
    kind = block.get("objective")
    if not isinstance(kind, str) or kind not in OBJECTIVES:
        came = f"got {quote(kind)}{nearest(str(kind), OBJECTIVES)}" if "objective" in block else "is required"
        raise RoadError(f"road.distill.objective: {came}; allowed: {', '.join(OBJECTIVES)}")
    objective = validated(OBJECTIVES[kind], block, "road.distill")
    if isinstance(objective, Taught):
        if not objective.teachers:
            raise RoadError(
                f"road.distill.teachers: {kind} needs a teacher for at least one data set of the run (road.use leaves the others out)"
            )
        for dataset, names in objective.teachers.items():
            if dataset not in config.datasets:
                raise RoadError(
                    f"road.distill.teachers.{dataset}: no such data set in road.datasets{nearest(dataset, config.datasets)}"
                )
            if len(set(names)) < len(names):
                raise RoadError(f"road.distill.teachers.{dataset}: a teacher is named twice: {', '.join(names)}")
            objective.fits(dataset, len(names))
    return objective


def teachers_of(objective: Objective) -> Mapping[str, list[str]]:
    """The teachers by data set; empty for an objective without."""
    return objective.teachers if isinstance(objective, Taught) else {}


def supervised(outputs: Outputs, labels: torch.Tensor) -> Loss:
    """The mean loss over rows against the labels, in float32.

    labels: [rows], whole numbers for cross-entropy, floats for squared error (classes = 1).
    """
    if labels.is_floating_point():
        loss = F.mse_loss(outputs.logits.float().squeeze(-1), labels.float())
    else:
        loss = F.cross_entropy(masked(outputs), labels, ignore_index=IGNORED)
    return Loss(loss, loss.detach())


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


def right_rows(logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """[teachers, rows] whether the argmax of [teachers, rows, classes] is the label."""
    outside = absent(Outputs(logits[0], lengths))
    scores = logits if outside is None else logits.masked_fill(outside, float("-inf"))
    return scores.argmax(-1) == labels


def gradient_share(
    objective: Objective, outputs: Outputs, teaching: Teaching, batch: Batch, progress: float
) -> torch.Tensor:
    """The teachers' share of the gradient at the logits: |soft| / (|hard| + |soft|), norms over the batch."""

    def gradient(loss: Any) -> torch.Tensor:
        logits = outputs.logits.detach().float().requires_grad_()
        found = loss(Outputs(logits, outputs.lengths, tuple(h.detach() for h in outputs.hidden)))
        return torch.autograd.grad(found.total, logits)[0]

    whole = gradient(lambda again: objective(again, teaching, batch, progress))
    hard = objective.hard_share(progress) * gradient(lambda again: supervised(again, batch.labels))
    soft_norm, hard_norm = (whole - hard).norm(), hard.norm()
    return soft_norm / (soft_norm + hard_norm).clamp(min=1e-30)


def absent(outputs: Outputs) -> torch.Tensor | None:
    """[rows, classes], True behind a row's own classes; None where all are real."""
    if outputs.lengths is None:
        return None
    return torch.arange(outputs.logits.shape[-1], device=outputs.logits.device) >= outputs.lengths[:, None]


def masked(outputs: Outputs) -> torch.Tensor:
    """The logits in float32, -inf behind a row's own classes."""
    outside, logits = absent(outputs), outputs.logits.float()
    return logits if outside is None else logits.masked_fill(outside, float("-inf"))
