"""What the commands do, for Python: load (predict, with the model kept), check, compare. `train` is train.py's."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from road_ds.common.errors import Faults, RoadError
from road_ds.common.log import quiet_libraries
from road_ds.config.file import Settings, assignments, read_config
from road_ds.data.readers import of_rows
from road_ds.models.predictor import Predictor

Name = str | os.PathLike[str]


def load(model: Name) -> "Loaded":
    """An exported folder, or a hub name, ready to be asked; on the GPU where there is one."""
    quiet_libraries()
    return Loaded(Predictor.load(os.fspath(model)))


@dataclass(frozen=True)
class Loaded:
    """A model that is asked by calling it; the answers are plain values, as `predict` writes them."""

    predictor: Predictor

    def __call__(self, first: Any = None, second: Any = None, /, *, batch_size: int = 64, **columns: Any) -> Any:
        """The answer to a row, or a list of answers to several.

        first, second: a text and the one beside it, or a list of each; or first alone: a row by its columns, or a list of
        rows. columns: the same by name (question=, context=), each one value, or a list with one for each row. RoadError for what
        the model cannot read.
        """
        rows, several = _rows(first, second, columns)
        examples = of_rows(rows) if rows else []
        found = [self.predictor.task.describe(p) for p in self.predictor.predict(examples, batch_size)] if rows else []
        return found if several else found[0]

    def __repr__(self) -> str:
        return f"<{self.predictor.task.type} of {self.predictor.name} on {self.predictor.device}>"


def _rows(first: Any, second: Any, columns: Mapping[str, Any]) -> tuple[list[Mapping[Any, Any]], bool]:
    """What a model is asked as rows by column, and whether it is a list that was asked."""
    if (first is None) == (not columns):
        raise RoadError(
            "give texts, rows, or columns by name: model(text), model([text, ...]), model(question=..., context=...)"
        )
    if isinstance(first, Mapping):
        first = [first]
        return first, False
    if isinstance(first, list | tuple) and all(isinstance(row, Mapping) for row in first) and second is None:
        return list(first), True
    if first is not None:
        columns = {"text": first} if second is None else {"text_a": first, "text_b": second}
    lengths = {name: len(value) for name, value in columns.items() if isinstance(value, list | tuple)}
    if not lengths:
        return [dict(columns)], False
    if len(set(lengths.values())) > 1:
        raise RoadError(f"lists of different lengths: {', '.join(f'{name} has {n}' for name, n in lengths.items())}")
    number = next(iter(lengths.values()))
    filled = {name: value if name in lengths else [value] * number for name, value in columns.items()}
    return [dict(zip(filled, values, strict=True)) for values in zip(*filled.values(), strict=True)], True


class Text(str):
    """A text of several lines that is shown as it is."""

    __repr__ = str.__str__


def check(config: Settings, *, gpus: int | None = None, **overrides: Any) -> Text:
    """The plan of a run, as `python -m road_ds check` prints it. RoadError with all that is wrong with settings and rows.

    config: a file, or what would stand in one; gpus: plans for so many; overrides: settings by name, as in `train`.
    """
    from road_ds.engine.plan import report

    quiet_libraries()
    faults = Faults()
    road, ds = read_config(config, assignments(overrides), faults)
    return Text(report(road, ds, gpus, faults))


class Comparison(dict[str, Any]):
    """What `compare --json` writes, shown as `compare` prints it."""

    def __repr__(self) -> str:
        from road_ds.recipes.comparison import text

        return text(self)


def compare(runs: Sequence[Name] | Mapping[str, Sequence[Name]], baseline: str | None = None) -> Comparison:
    """Runs side by side: mean and spread over seeds, and how sure each difference to the baseline is.

    runs: folders, or what `train` returned, grouped by name as `python -m road_ds compare` does; or the groups by name.
    """
    from road_ds.recipes import comparison

    if isinstance(runs, Mapping):
        groups = {name: [comparison.Finished.open(Path(run)) for run in of] for name, of in runs.items()}
    else:
        groups = comparison.grouped([os.fspath(run) for run in runs])
    return Comparison(comparison.compare(groups, baseline))
