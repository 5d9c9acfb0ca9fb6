"""The labels of tasks, compared by name."""

from road_ds.tasks.base import Task


def label_names(task: Task) -> list[str] | None:
    """The names of a task's classes, in the order of its logits; None where they have none."""
    return getattr(task, "labels", None)


def order_of(there: list[str] | None, wanted: list[str] | None) -> list[int] | None:
    """The positions that bring label names into the wanted order; None where they stand in it."""
    if there is None or wanted is None or there == wanted:
        return None
    return [there.index(label) for label in wanted]
