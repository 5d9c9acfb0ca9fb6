"""What a batch teaches: its head's outputs against labels and teachers, as one loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from road_ds.data.batch import Batch
from road_ds.distillation.guard import Guarded
from road_ds.distillation.minimax import Minimax
from road_ds.distillation.objective import Loss, Teachers, gradient_share


@dataclass(frozen=True)
class Lesson:
    """An objective with its teachers. heads: the head that each data set trains; steps: the length of the run; minimax: who
    chooses neighbours, None without."""

    objective: Guarded
    teachers: Teachers
    heads: Mapping[str, str]
    steps: int
    minimax: Minimax | None = None

    def __call__(self, model: Callable[..., Any], batch: Batch, step: int, measured: bool = False) -> Loss:
        """The loss of a batch in a step (from 0); measured: with the teachers' share of its gradient."""
        progress, teaching = step / self.steps, self.teachers(batch)
        outputs = model(batch, self.heads[batch.dataset], teaching and teaching.states, step)
        loss = self.objective(outputs, teaching, batch, progress)
        objective = self.objective.objective
        if measured and teaching is not None:
            loss = replace(loss, share=gradient_share(objective, outputs, teaching, batch, progress))
        if self.minimax is not None and (added := self.minimax(model, batch, objective, progress)):
            loss = replace(loss, total=loss.total + added[0], neighbours=added[1])
        return loss
