"""What an objective is: a batch's logits, labels and teachers as one number to go down."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from road_kernels import KDLoss, check_against_reference, kd_loss
from torch.nn import functional as F

from road_ds.config.settings import Strict
from road_ds.data.batch import IGNORED, Batch
from road_ds.distillation.adversarial import Adversarial
from road_ds.distillation.layers.base import LayerMethod
from road_ds.distillation.layers.hidden import HiddenKD
from road_ds.distillation.layers.registry import method_from
from road_ds.distillation.neighbours import NeighbourKD
from road_ds.models.states import States
from road_ds.tasks.outputs import Outputs


@dataclass(frozen=True)
class Teaching:
    """What the teachers say of a batch. logits: [teachers, rows, classes], raw; states: of the layers that are compared."""

    logits: torch.Tensor
    states: States | None = None

    def halves(self) -> tuple["Teaching", "Teaching"]:
        """What they say of the first half of the rows, and of the second, by their logits."""
        first, second = self.logits.chunk(2, dim=1)
        return Teaching(first), Teaching(second)


Teachers = Callable[[Batch], Teaching | None]  # None for a data set without a teacher


@dataclass(frozen=True)
class Loss:
    """total: what is differentiated; hard, soft, layers, neighbours, generated: the loss against labels, against teachers,
    between their layers and the student's, of the neighbours that are learned from, and against teachers on generated text,
    unweighted, detached; share: the teachers' part of the gradient at the logits, where it was measured; terms: other
    parts of the total, by name."""

    total: torch.Tensor
    hard: torch.Tensor | None = None
    soft: torch.Tensor | None = None
    share: torch.Tensor | None = None
    layers: torch.Tensor | None = None
    neighbours: torch.Tensor | None = None
    generated: torch.Tensor | None = None
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def scaled(self, factor: float) -> "Loss":
        """The same with the total and its parts multiplied; not `share`, which is one of their sizes."""
        changed = {
            f.name: v * factor
            for f in fields(self)
            if torch.is_tensor(v := getattr(self, f.name)) and f.name != "share"
        }
        return replace(self, **changed, terms={name: value * factor for name, value in self.terms.items()})

    def parts(self) -> dict[str, torch.Tensor]:
        """What is written of it beside the total, by name."""
        taught = {
            "hard": self.hard, "soft": self.soft, "soft_share": self.share, "layers": self.layers,
            "neighbours": self.neighbours, "generated": self.generated,
        }  # fmt: skip
        if self.soft is None and self.layers is None:
            taught = {}
        return {name: value for name, value in {**taught, **self.terms}.items() if value is not None}


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

    def loss(self, found: KDLoss, outputs: Outputs, labels: torch.Tensor, progress: float) -> Loss:
        """What the kernels found; where labels have weights, what those add to the part against the labels."""
        total, hard = found.total, found.hard.mean()
        if outputs.weights is not None:  # a kernel's weight of a row would count for its teachers too
            more = supervised(replace(outputs, weights=outputs.weights - 1), labels).total
            total, hard = total + self.hard_share(progress) * more, hard + more.detach()
        return Loss(total, hard, found.soft.mean())

    def check(self, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float) -> None:
        """KernelMismatch where the kernels disagree with their definition on this batch."""
        if batch.labels.is_floating_point():
            return
        teachers = teaching.logits if teaching is not None else None
        if arguments := self.kernel(outputs, teachers, batch.labels, progress):
            check_against_reference(outputs.logits, arguments.pop("teacher"), batch.labels, **arguments)


class Taught(Fused):
    """What objectives with teachers share: where the teachers' logits come from, and the term between layers."""

    teachers: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    source: str = "cached"  # a key of SOURCES
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99  # of the average
    dtype: Literal["float16", "float32"] = "float16"
    cache: str | None = None
    layers: LayerMethod | None = None
    hidden: HiddenKD | None = None  # the older words for one of the methods
    adversarial: Adversarial | None = None
    neighbours: dict[str, NeighbourKD] = {}

    @field_validator("layers", mode="before")
    @classmethod
    def method_by_name(cls, value: Any) -> Any:
        return None if value is None else method_from(value)

    @model_validator(mode="after")
    def states_are_there(self):
        if self.layers is not None and self.hidden is not None:
            raise ValueError('hidden is layers with the method "hidden": give one of the two')
        if self.compared is not None and self.source == "cached" and not self.compared.first:
            raise ValueError(
                f'the method {self.compared.method} compares states of all tokens, which are not cached: set source to "online"'
            )
        return self

    @model_validator(mode="after")
    def generated_text_is_not_cached(self):
        if self.adversarial is not None and self.source != "online":
            raise ValueError(
                'adversarial has the teachers read generated text, which is not cached: set source to "online"'
            )
        return self

    @model_validator(mode="after")
    def an_average_is_the_runs_own(self):
        if self.source == "average" and self.teachers:
            raise ValueError("the source average is the run's own and teaches all its data sets: leave teachers out")
        if self.source != "average" and "decay" in self.model_fields_set:
            raise ValueError(f'decay is of the source "average", got source {self.source}: leave it out')
        if self.source == "average" and self.compared is not None:
            raise ValueError("the source average gives no states of layers: leave layers out, or name teachers")
        return self

    @property
    def compared(self) -> LayerMethod | None:
        """How the student's layers are compared with the teachers'."""
        return self.hidden.method() if self.hidden else self.layers

    def __call__(self, outputs, teaching, batch, progress):
        if teaching is None:
            return supervised(outputs, batch.labels)
        loss = self.of_values if batch.labels.is_floating_point() else self.of_classes
        found = loss(outputs, teaching.logits, batch.labels, progress)
        if self.compared is None:
            return found
        return replace(found, total=found.total + self.compared.weight * outputs.layers, layers=outputs.layers.detach())

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

    def of_unlabelled(self, outputs: Outputs, teachers: torch.Tensor, progress: float) -> torch.Tensor:
        """The loss over classes of rows that have no label, against the teachers alone: a scalar, unweighted."""
        return divergence(self, outputs, teachers).mean()

    def with_generated(
        self, loss: Loss, outputs: Outputs, teachers: torch.Tensor, batch: Batch, progress: float
    ) -> Loss:
        """The loss of a batch together with that of the rows generated from it, which have no label: against the teachers alone."""
        assert self.adversarial is not None
        if batch.labels.is_floating_point():
            value = teachers.float().mean(0).squeeze(-1)  # stands for the gold one, too
            generated = self.of_values(outputs, teachers, value, progress).total
        else:
            generated = self.of_unlabelled(outputs, teachers, progress)
        weight = self.adversarial.weight
        return replace(loss, total=(1 - weight) * loss.total + weight * generated, generated=generated.detach())

    def fits(self, dataset: str, number: int) -> None:
        """RoadError where the settings do not hold for so many teachers of a data set."""


def divergence(
    objective: Fused, outputs: Outputs, teachers: torch.Tensor, temperature: float = 1.0, kl_scale: Any = 1
) -> torch.Tensor:
    """kl_scale KL(mean of the teachers || student) of each row at a temperature, [rows]; with a gradient."""
    found = kd_loss(
        outputs.logits, teachers, None, temperature=temperature, weight=1.0, kl_scale=kl_scale,
        lengths=outputs.lengths, reduction="none", impl=objective.kernels,
    )  # fmt: skip
    return found.total


def supervised(outputs: Outputs, labels: torch.Tensor) -> Loss:
    """The mean loss over rows against the labels, in float32.

    labels: [rows], whole numbers for cross-entropy, floats for squared error (classes = 1). Where labels have weights, a row's
    loss is multiplied by its own, and the sum divided by the number of rows, not by the sum of the weights: the mean over
    micro-batches and processes is then that over all rows.
    """
    if labels.is_floating_point():
        loss = F.mse_loss(outputs.logits.float().squeeze(-1), labels.float())
    elif outputs.weights is None:
        loss = F.cross_entropy(masked(outputs), labels, ignore_index=IGNORED)
    else:
        rows = F.cross_entropy(masked(outputs), labels, ignore_index=IGNORED, reduction="none")
        loss = (outputs.weights * rows).sum() / (labels != IGNORED).sum().clamp(min=1)
    return Loss(loss, loss.detach())


def gradient_share(
    objective: Objective, outputs: Outputs, teaching: Teaching, batch: Batch, progress: float
) -> torch.Tensor:
    """The teachers' share of the gradient at the logits: |soft| / (|hard| + |soft|), norms over the batch."""

    def gradient(loss: Any) -> torch.Tensor:
        logits = outputs.logits.detach().float().requires_grad_()
        layers = outputs.layers if outputs.layers is None else outputs.layers.detach()
        found = loss(replace(outputs, logits=logits, layers=layers))
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
