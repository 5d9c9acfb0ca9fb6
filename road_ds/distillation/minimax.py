"""Minimax-kNN-KD: of the neighbours of a batch's rows, those on which the student is furthest from the teachers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from road_ds.data.batch import Batch
from road_ds.data.batches import Padding
from road_ds.distillation.neighbours import Neighbours
from road_ds.distillation.objective import Objective, Taught, Teachers, divergence


@dataclass(frozen=True)
class Minimax:
    """The neighbours of a run, by data set, and who teaches them; padding: how their batches are made."""

    of: Mapping[str, Neighbours]
    teachers: Teachers
    heads: Mapping[str, str]
    padding: Padding

    def __call__(
        self, model: Callable[..., Any], batch: Batch, objective: Objective, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The weighted loss of the kept neighbours of a batch's rows, and the same unweighted and detached.

        None where the batch's data set has no neighbours.
        """
        found = self.of.get(batch.dataset)
        if found is None:
            return None
        assert isinstance(objective, Taught)
        numbers = np.asarray(found.table[batch.features])  # [rows, k]
        if found.settings.keep < found.settings.k:
            numbers = self._furthest(model, batch, objective, found, numbers)
        kept = self._batch(found, numbers, batch)
        loss = objective.of_unlabelled(model(kept, self.heads[batch.dataset]), self._logits(kept), progress)
        return found.settings.weight * loss, loss.detach()

    def _furthest(
        self, model: Callable[..., Any], batch: Batch, objective: Taught, found: Neighbours, numbers: np.ndarray
    ) -> np.ndarray:
        """[rows, keep] of the neighbours [rows, k]: those with the largest KL(mean of the teachers || student).

        Of equal ones the nearer. The student is as it is now, without dropout: no random number is drawn.
        """
        every = self._batch(found, numbers, batch)
        with undisturbed(model):
            outputs = model(every, self.heads[batch.dataset])
            far = divergence(objective, outputs, self._logits(every)).view(numbers.shape)
        order = far.argsort(dim=1, descending=True, stable=True)[:, : found.settings.keep]
        return np.take_along_axis(numbers, order.cpu().numpy(), axis=1)

    def _batch(self, found: Neighbours, numbers: np.ndarray, batch: Batch) -> Batch:
        return self.padding.collate(found.texts, numbers.ravel()).to(batch.input_ids.device)

    def _logits(self, batch: Batch) -> torch.Tensor:
        teaching = self.teachers(batch)
        assert teaching is not None
        return teaching.logits


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Inside, a model is only asked: no gradient, no dropout."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
