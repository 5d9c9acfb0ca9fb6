"""What a batch teaches: its head's outputs against labels and teachers, as one loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from road_ds.data.batch import Batch
from road_ds.distillation.guard import Guarded
from road_ds.distillation.objective import Loss, Teachers, gradient_share


@dataclass(frozen=True)
class Lesson:
    """An objective with its teachers. heads: the head that each data set trains; steps: the length of the run."""

    objective: Guarded
    teachers: Teachers
    heads: Mapping[str, str]
    steps: int

    def __call__(self, model: Callable[..., Any], batch: Batch, step: int, measured: bool = False) -> Loss:
        """The loss of a batch in a step (from 0); measured: with the teachers' share of its gradient."""
        progress, teaching = step / self.steps, self.teachers(batch)
        outputs = model(batch, self.heads[batch.dataset], teaching and teaching.states, step)
        loss = self.objective(outputs, teaching, batch, progress)
        if not measured or teaching is None:
            return loss
        return replace(loss, share=gradient_share(self.objective.objective, outputs, teaching, batch, progress))
