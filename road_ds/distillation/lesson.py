"""What a batch teaches: its head's outputs against labels and teachers, as one loss."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from road_ds.data.batch import Batch
from road_ds.distillation.guard import Guarded
from road_ds.distillation.minimax import Minimax
from road_ds.distillation.objective import Loss, Taught, Teachers, Teaching, gradient_share
from road_ds.tasks.outputs import Outputs


def as_written(batch: Batch, step: int) -> Batch:
    """What is read of a batch where nothing is generated: itself."""
    return batch


@dataclass(frozen=True)
class Lesson:
    """An objective with its teachers. heads: the head that each data set trains; steps: the length of the run; text: what is
    read of a batch in a step (from 0), itself or with generated rows behind it; minimax: who chooses neighbours, None without."""

    objective: Guarded
    teachers: Teachers
    heads: Mapping[str, str]
    steps: int
    text: Callable[[Batch, int], Batch] = as_written
    minimax: Minimax | None = None

    def read(self, batch: Batch, step: int) -> tuple[Batch, Teaching | None]:
        """What is read of a batch in a step (from 0), and what its teachers say of that."""
        batch = self.text(batch, step)
        return batch, self.teachers(batch)

    def __call__(
        self, model: Callable[..., Any], batch: Batch, teaching: Teaching | None, step: int, measured: bool = False
    ) -> Loss:
        """The loss of a batch in a step (from 0); measured: with the teachers' share of its gradient.

        A task that learns from the text alone has its own loss, whatever the objective.
        """
        outputs = model(batch, self.heads[batch.dataset], teaching and teaching.states, step)
        return self._taught(model, outputs, batch, teaching, step, measured)

    def together(
        self, model: Callable[..., Any], batches: Sequence[Batch], teachings: Sequence[Teaching | None], step: int, measured: bool = False
    ) -> list[Loss]:  # fmt: skip
        """The losses of batches that one forward pass reads."""
        if len(batches) == 1:
            return [self(model, batches[0], teachings[0], step, measured)]
        found = model(tuple(batches), tuple(self.heads[batch.dataset] for batch in batches))
        both = zip(found, batches, teachings, strict=True)
        return [self._taught(model, outputs, batch, teaching, step, measured) for outputs, batch, teaching in both]

    def _taught(
        self, model: Callable[..., Any], outputs: Outputs, batch: Batch, teaching: Teaching | None, step: int, measured: bool
    ) -> Loss:  # fmt: skip
        progress = step / self.steps
        if outputs.loss is not None:
            return Loss(outputs.loss, terms=outputs.terms)
        if batch.share == 1.0:
            loss = self._whole(outputs, teaching, batch, progress, measured)
        else:  # the term between layers is a mean over features, of which all micro-batches have as many
            outputs = outputs if outputs.layers is None else replace(outputs, layers=outputs.layers / batch.share)
            loss = self._whole(outputs, teaching, batch, progress, measured).scaled(batch.share)
        objective = self.objective.objective
        if self.minimax is not None and (added := self.minimax(model, batch.original or batch, objective, progress)):
            loss = replace(loss, total=loss.total + added[0], neighbours=added[1])
        return loss

    def _whole(
        self, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float, measured: bool
    ) -> Loss:
        """The loss of what was read of a batch, generated rows among it; 0 where that is no row of logits."""
        if not len(outputs.logits):
            nothing = outputs.logits.float().sum()
            return Loss(nothing if outputs.layers is None else nothing + 0.0 * outputs.layers)
        if batch.original is None:
            return self._loss(outputs, teaching, batch, progress, measured)
        objective, batch = self.objective.objective, batch.original
        assert teaching is not None and isinstance(objective, Taught)
        (outputs, generated), (teaching, answers) = outputs.halves(), teaching.halves()
        loss = self._loss(outputs, teaching, batch, progress, measured)
        return objective.with_generated(loss, generated, answers.logits, batch, progress)

    def _loss(self, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float, measured: bool) -> Loss:
        loss = self.objective(outputs, teaching, batch, progress)
        if not measured or teaching is None:
            return loss
        return replace(loss, share=gradient_share(self.objective.objective, outputs, teaching, batch, progress))
