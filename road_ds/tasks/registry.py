"""The tasks by type, and the heads of a run. A new task is a file beside this one and a line here."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from road_ds.common.errors import Faults, RoadError, nearest
from road_ds.common.strict_json import quote
from road_ds.config.road import RoadConfig
from road_ds.config.settings import sound, validated
from road_ds.config.trainer_words import NO_TASK, TASK_HERE
from road_ds.data.batch import Batch
from road_ds.tasks.base import Task
from road_ds.tasks.classification import Classification
from road_ds.tasks.multi_label import MultiLabel
from road_ds.tasks.multiple_choice import MultipleChoice
from road_ds.tasks.regression import Regression
from road_ds.tasks.replaced_tokens import ReplacedTokens
from road_ds.tasks.span_qa import SpanQA
from road_ds.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    "span_qa": SpanQA,
    "classification": Classification,
    "multi_label": MultiLabel,
    "multiple_choice": MultipleChoice,
    "regression": Regression,
    "token_classification": TokenClassification,
    "replaced_tokens": ReplacedTokens,
}


def task_from(settings: Any, where: str) -> Task:
    """The task that a block of settings describes. RoadError for an unknown type or setting."""
    return validated(_kind(settings, where), settings, where)


def _kind(settings: Any, where: str) -> type[Task]:
    kind = settings.get("type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in TASKS:
        if isinstance(kind, str) and kind in TASK_HERE:
            meant = f"; here it is {TASK_HERE[kind]}"
        else:
            meant = "" if str(kind) in NO_TASK else nearest(str(kind), TASKS)
        raise RoadError(f"{where}.type: got {quote(kind)}; allowed: {', '.join(TASKS)}{meant}")
    return TASKS[kind]


class Heads(dict[str, Task]):
    """The heads of a run by name, each with its task. of: the head that each data set trains."""

    def __init__(self, tasks: Mapping[str, Task], of: Mapping[str, str]):
        super().__init__(tasks)
        self.of = dict(of)

    def task(self, dataset: str) -> Task:
        """The task of the head that a data set trains."""
        return self[self.of[dataset]]

    def by_dataset(self) -> dict[str, Task]:
        """The task of each data set."""
        return {name: self[head] for name, head in self.of.items()}

    def draws(self) -> dict[str, Callable[..., Batch]]:
        """What is drawn anew for the rows of each data set, as `assemble` takes it."""
        return {name: task.draw for name, task in self.by_dataset().items()}

    def pairs(self, pairs: Mapping[str, bool | None]) -> dict[str, list[bool | None]]:
        """By head what is given by data set: whether its rows are pairs of texts, None where some are."""
        return {head: [pairs[name] for name in pairs if self.of.get(name) == head] for head in self}

    def reading(self, tokenizer: Any) -> "Heads":
        """The same heads, each with what it has to know of the tokenizer."""
        return Heads({head: task.reading(tokenizer) for head, task in self.items()}, self.of)

    def counting(self, labels: Mapping[str, Callable[[], Counter[int]]]) -> "Heads":
        """The same heads, each with what it has to know of how often its labels come; labels: by data set."""

        def of(head: str) -> Counter[int]:
            return sum((count() for name, count in labels.items() if self.of.get(name) == head), Counter())

        return Heads({head: task.counting(partial(of, head)) for head, task in self.items()}, self.of)

    def changes(self, later: "Heads") -> list[str]:
        """A line for each setting that the same heads have otherwise later."""
        pairs = ((head, self[head].model_dump(), later[head].model_dump()) for head in self)
        return [
            f"road.tasks.{head}.{key} = {new[key]}" for head, old, new in pairs for key in old if old[key] != new[key]
        ]

    def trained_on(self, pairs: Mapping[str, bool | None]) -> "Heads":
        """The same heads, each with what its rows were."""
        kinds = self.pairs(pairs)
        return Heads({head: task.trained_on(kinds[head]) for head, task in self.items()}, self.of)


def heads(config: RoadConfig, faults: Faults | None = None) -> Heads:
    """The heads of a run: one per task, or one per data set. RoadError with the faults of all tasks.

    faults: collects them instead; tasks then come without the settings that do not hold, or not at all.
    """
    found = faults or Faults()
    tasks: dict[str, Task] = {}
    for name, settings in config.tasks.items():
        with found.caught():
            where = f"road.tasks.{name}"
            task, _ = sound(_kind(settings, where), settings, where, found)
            tasks |= {name: task} if task else {}
    if faults is None:
        found.end()
    of = {name: config.head_of(name) for name, spec in config.datasets.items() if spec.task in tasks}
    return Heads({head: tasks[config.datasets[name].task] for name, head in of.items()}, of)
