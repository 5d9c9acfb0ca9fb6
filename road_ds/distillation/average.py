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
        self.engine: Any = None

    def follow(self, engine: Any) -> None:
        """Begins with the weights that an engine has now; a checkpoint that it loads later brings its own average."""
        self.engine, self.average = engine, Average(engine.module)
        engine.module.average = self.average

    def models(self) -> list[nn.Module]:
        """What reads the batches."""
        return [self.average]

    def __call__(self, batch: Batch) -> Teaching | None:
        """The average's logits of a batch; None before there is an engine, when micro-batches are tried out."""
        if self.engine is None:
            return None
        steps = self.engine.global_steps
        if steps != self.step:
            self.average.take_in(max(1 - self.decay, 1 / (steps + 1)))
            self.step = steps
        return Teaching(self.average(batch, self.heads[batch.dataset], self.engine.module).logits.float()[None])
