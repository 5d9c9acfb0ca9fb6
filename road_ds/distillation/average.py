"""A run's own average as its teacher: self-distillation while it trains (Mean Teacher)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from road_ds.data.batch import Batch
from road_ds.distillation.objective import Teaching
from road_ds.tasks.outputs import Outputs


class Average(nn.Module):
    """The average of a model's weights over steps, in float32: a buffer for each parameter, and so a part of checkpoints."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.weights = list(model.parameters())  # in a list: not part of this module
        for number, weight in enumerate(self.weights):
            self.register_buffer(str(number), weight.detach().float().clone())

    @torch.no_grad()
    def take_in(self, share: float) -> None:
        """Moves the average by a share of the way to the model's weights."""
        for own, weight in zip(self.buffers(), self.weights, strict=True):
            own.lerp_(weight.float(), share)

    def forward(self, batch: Batch, head: str, model: nn.Module) -> Outputs:
        """What the model says of a batch with its weights averaged, without dropout."""
        training = model.training
        model.eval()
        with torch.no_grad(), self.exchanged():
            outputs = model.forward(batch, head)
        model.train(training)
        return outputs

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """Inside, the model's parameters hold their average, in their own precision; behind it the same memory as before."""
        before = [weight.data for weight in self.weights]
        try:
            for own, weight in zip(self.buffers(), self.weights, strict=True):
                weight.data = own.to(weight.dtype)
            yield
        finally:
            for weight, data in zip(self.weights, before, strict=True):
                weight.data = data


class AverageTeacher:
    """The exponential average of the student's own weights, which reads each batch beside it. heads: of each data set.

    decay: what the average keeps of itself in a step; less at first, so that the weights of n steps count alike until
    1 / (1 - decay) of them are there. In step n it holds the weights before the steps 1 to n.
    """

    identity: Mapping[str, list[str]] = {}  # the settings say it

    def __init__(self, decay: float, heads: Mapping[str, str]):
        self.decay, self.heads, self.step = decay, heads, 0

    def follow(self, model: nn.Module, engine: Any = None) -> None:
        """Begins with the weights that a model has now; a checkpoint that its engine loads later brings its own average.

        engine: what counts the steps; before there is one (an engine casts the model's buffers) the average stands still.
        """
        self.model, self.engine, self.average = model, engine, Average(model)
        model.average = self.average

    def models(self) -> list[nn.Module]:
        """What reads the batches."""
        return [self.average]

    def __call__(self, batch: Batch) -> Teaching:
        """The average's logits of a batch."""
        steps = self.engine.global_steps if self.engine else 0
        if steps != self.step:
            self.average.take_in(max(1 - self.decay, 1 / (steps + 1)))
            self.step = steps
        return Teaching(self.average(batch, self.heads[batch.dataset], self.model).logits.float()[None])
