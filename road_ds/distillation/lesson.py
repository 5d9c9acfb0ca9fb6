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
    """An objective with its teachers. heads: the head that each data set trains; minimax: None without neighbours."""

    objective: Guarded
    teachers: Teachers
    heads: Mapping[str, str]
    minimax: Minimax | None = None

    def __call__(self, model: Callable[..., Any], batch: Batch, progress: float, measured: bool = False) -> Loss:
        """The loss of a batch at a progress in [0, 1]; measured: with the teachers' share of its gradient."""
        outputs = model(batch, self.heads[batch.dataset])
        teaching = self.teachers(batch)
        loss = self.objective(outputs, teaching, batch, progress)
        objective = self.objective.objective
        if measured and teaching is not None:
            loss = replace(loss, share=gradient_share(objective, outputs, teaching, batch, progress))
        if self.minimax is not None and (added := self.minimax(model, batch, objective, progress)):
            loss = replace(loss, total=loss.total + added[0], neighbours=added[1])
        return loss
