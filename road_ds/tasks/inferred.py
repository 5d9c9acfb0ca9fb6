"""The labels of tasks that name none: those of their rows."""

from collections.abc import Iterable, Iterator

from road_ds.common.errors import Faults, RoadError
from road_ds.common.strict_json import quote
from road_ds.config.road import DatasetSpec, RoadConfig
from road_ds.data.features import check_labelled
from road_ds.data.labels import each
from road_ds.data.readers import Example, Reading
from road_ds.data.sources import Source
from road_ds.tasks.base import Task
from road_ds.tasks.labels import label_names
from road_ds.tasks.registry import Heads

MOST = 1000  # different labels; rows with more are hardly classified
SHOWN = 50


def with_labels(config: RoadConfig, heads: Heads, faults: Faults | None = None) -> tuple[RoadConfig, Heads, list[str]]:
    """Settings and heads with labels for each task that names none, and a line for each of these.

    They are the labels of all its data sets' train rows (of all rows, where a share of them is held out), sorted: by
    number where all are whole numbers, else as text. RoadError for rows that have no label, one label or more than MOST;
    faults: collects those instead, and such heads are left out.
    """
    own, tasks, lines, found = faults or Faults(), dict(config.tasks), [], dict(heads)
    for name in dict.fromkeys(config.datasets[dataset].task for dataset in heads.of):
        of = {dataset: head for dataset, head in heads.of.items() if config.datasets[dataset].task == name}
        if label_names(heads.task(next(iter(of)))) != []:
            continue
        lacking = {head: found.pop(head) for head in dict.fromkeys(of.values())}
        with own.caught():
            rows = {dataset: config.datasets[dataset] for dataset in of}
            labels = sorted_labels(labels_of(name, next(iter(lacking.values())), rows))
            tasks[name] = {**tasks[name], "labels": labels}
            found |= {head: task.model_copy(update={"labels": labels}) for head, task in lacking.items()}
            more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
            shown = [quote(label) if ", " in label else label for label in labels[:SHOWN]]
            lines.append(f"labels of {name}, from its rows: {', '.join(shown)}{more}")
    if faults is None:
        own.end()
    kept = {dataset: head for dataset, head in heads.of.items() if head in found}
    ordered = {head: found[head] for head in heads if head in found}
    return config.model_copy(update={"tasks": tasks}), Heads(ordered, kept), lines


def labels_of(name: str, task: Task, datasets: dict[str, DatasetSpec]) -> set[str]:
    """The different labels of the train rows of a task's data sets."""
    found: set[str] = set()
    for dataset, spec in datasets.items():
        for example in _rows(dataset, spec):
            check_labelled(example, dataset, task)
            assert example.label is not None
            found.update(map(str, each(example.label)))
            if len(found) > MOST:
                raise RoadError(
                    f"{example.where}: road.tasks.{name} names no labels, and its rows up to here have more than {MOST:,} different ones, "
                    f'such as {example.label!r}: set columns.label to the right column, the task\'s type to "regression", or its labels'
                )
    if len(found) < 2:
        raise RoadError(
            f"road.tasks.{name} names no labels, and the rows of {', '.join(datasets)} have "
            f"{f'only {next(iter(found))!r}' if found else 'none'}: expected two or more; set columns.label, or labels"
        )
    return found


def _rows(dataset: str, spec: DatasetSpec) -> Iterator[Example]:
    whole = spec.model_copy(update={"dev": None}) if isinstance(spec.dev, float) else spec
    return Source.of(dataset, "train", whole).examples(Reading())


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Whole numbers by their value, else as text."""
    names = sorted(labels)
    return sorted(names, key=int) if all(name.removeprefix("-").isdecimal() for name in names) else names
