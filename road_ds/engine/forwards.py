"""Rows that models read in a step, whatever the method: what a run costs beside its scores."""

from collections import Counter
from typing import Any

import torch
from torch import nn

COUNTED = ("rows_trained", "rows_asked", "rows_of_teachers")


class Forwards:
    """Counts the rows of each forward pass on this process, by COUNTED: of the student with a gradient and without one, and
    of the teachers beside it."""

    def __init__(self, student: nn.Module, teachers: Any = None):
        self.counts: Counter[str] = Counter()
        student.register_forward_hook(self._of_student)
        for teacher in getattr(teachers, "models", list)():  # soft targets have none
            teacher.register_forward_hook(self._of_teacher)

    def take(self) -> Counter[str]:
        """The counts since the last time."""
        taken, self.counts = self.counts, Counter()
        return taken

    def _of_student(self, module: nn.Module, arguments: tuple, outputs: Any) -> None:
        read = arguments[0] if isinstance(arguments[0], tuple) else arguments[:1]
        rows = sum(len(batch.input_ids) for batch in read)
        self.counts["rows_trained" if torch.is_grad_enabled() else "rows_asked"] += rows

    def _of_teacher(self, module: nn.Module, arguments: tuple, outputs: Any) -> None:
        # a model of Hugging Face has named arguments only
        self.counts["rows_of_teachers"] += len(arguments[0].input_ids if arguments else outputs[0])
