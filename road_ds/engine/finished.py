"""A finished run as an object: its scores, curves and models, read from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from road_ds.common.hub import trained_heads
from road_ds.common.log import table
from road_ds.common.strict_json import load_json
from road_ds.engine.run_folder import RunFolder


class Curve(NamedTuple):
    """The values of a quantity, and the steps after which it had them: `plot(*curve)`."""

    steps: list[int]
    values: list[float]


class Table(list[dict[str, Any]]):
    """Rows by column, shown as a table; `pandas.DataFrame` takes it as it is."""

    def _cells(self) -> list[list[str]]:
        return [[f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()] for row in self]

    def __repr__(self) -> str:
        return table(self._cells(), next(iter(self), {}))

    def _repr_html_(self) -> str:
        lines = ["".join(f"<th>{escape(name)}</th>" for name in next(iter(self), {}))]
        lines += ["".join(f"<td>{escape(cell)}</td>" for cell in cells) for cells in self._cells()]
        return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: its folder, and its results.json."""

    folder: Path
    results: Mapping[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Run":
        """The run in a folder. RoadError where it left no results."""
        return cls(folder, load_json(folder / "results.json"))

    @property
    def metrics(self) -> Table:
        """The headline metric of each data set on the exported model's dev rows, beside its baseline."""
        return Table(
            {"data set": name, "rows": of["rows"], "metric": (key := of["headline"]), "dev": of["scores"][key],
             "baseline": of["baseline"].get(key)}
            for name, of in self.results["scores"].items()
        )  # fmt: skip

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """All metrics by data set."""
        return {name: of["scores"] for name, of in self.results["scores"].items()}

    @property
    def curves(self) -> dict[str, Curve]:
        """What metrics.jsonl has of each quantity: loss, lr, loss/<data set>, <data set>/<metric> ..."""
        found: dict[str, Curve] = {}
        for line in RunFolder(self.folder).records():
            for key, value in line.items():
                if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    curve = found.setdefault(key, Curve([], []))
                    curve.steps.append(line["step"])
                    curve.values.append(value)
        return found

    @property
    def models(self) -> dict[str, Path]:
        """The exported folder of each head."""
        return trained_heads(str(self.folder))

    def __fspath__(self) -> str:
        return str(self.folder)

    def _said(self) -> Sequence[str]:
        return [
            f"{self.folder}: {self.results['step']:,} steps",
            *(f"{head}: {path}" for head, path in self.models.items()),
        ]

    def __repr__(self) -> str:
        return "\n".join([repr(self.metrics), "", *self._said()])

    def _repr_html_(self) -> str:
        return self.metrics._repr_html_() + "<br>".join(map(escape, self._said()))
