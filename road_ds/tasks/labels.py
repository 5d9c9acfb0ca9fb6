"""The labels of tasks, compared by name."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from road_ds.common.errors import RoadError, misspelt
from road_ds.data.readers import Example
from road_ds.tasks.base import Task


def _different(labels: list[str]) -> list[str]:
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"expected two or more different label names, got {labels}")
    return labels


# Not given, they are those of the rows (inferred.py).
LabelNames = Annotated[list[str], AfterValidator(_different)]


def head_labels(labels: Sequence[str]) -> dict[str, Any]:
    """What a head's Hugging Face configuration holds of its labels."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def position(name: Any, labels: Sequence[str], where: str, hint: str = "") -> int:
    """Where a label stands in a head's list. RoadError that names the row where it does not; hint: what else it could be."""
    try:
        return labels.index(str(name))
    except ValueError:
        raise RoadError(
            f"{where}: label {name!r} is none of the task's labels ({', '.join(labels)}){misspelt(str(name), labels)}; rename "
            f"it with label_map, or leave such rows out with drop_labels{hint}"
        ) from None


def beside(answer: dict[str, Any], probabilities: Mapping[str, float]) -> dict[str, Any]:
    """An answer and the probabilities behind it, by name; a class of the answer's own key does not take its place."""
    return answer | {name: round(share, 4) for name, share in probabilities.items() if name not in answer}


def lone(example: Example) -> str | float:
    """The one label of a labelled example. RoadError where it has a list of them."""
    assert example.label is not None
    if isinstance(example.label, tuple):
        raise RoadError(
            f"{example.where}: the row has a list of labels ({', '.join(example.label) or 'none'}), the task takes one: set the "
            'task\'s type to "multi_label", or columns.label to a column of one'
        )
    return example.label


def label_names(task: Task) -> list[str] | None:
    """The names of a task's classes, in the order of its logits; None where they have none."""
    return getattr(task, "labels", None)


def order_of(there: list[str] | None, wanted: list[str] | None) -> list[int] | None:
    """The positions that bring label names into the wanted order; None where they stand in it."""
    if there is None or wanted is None or there == wanted:
        return None
    return [there.index(label) for label in wanted]


def reordered(logits: Any, order: list[int] | None, numbers: int) -> Any:
    """The logits of one or more features, any shape, with their labels in another order. numbers: of each label in a feature."""
    return logits if order is None else logits.reshape(-1, len(order), numbers)[:, order].reshape(logits.shape)
