"""What the pictures of runs share."""

from collections.abc import Iterable, Sequence
from typing import Any

POINTS = 400  # of one curve in a picture


def smooth(values: Sequence[float]) -> list[float]:
    """Means over a fiftieth of the values, up to each."""
    span = max(1, len(values) // 50)
    return [sum(p) / len(p) for i in range(len(values)) if (p := values[max(0, i - span) : i + 1])]


def thinned(points: Sequence[Any]) -> Sequence[Any]:
    """Evenly spaced ones of many points, first and last among them: a page of a long run stays small."""
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def draw(axes: Any, records: Iterable[dict[str, Any]], key: str, *, mean: bool = False, **style: Any) -> bool:
    """Draws a value of metrics.jsonl over steps, running means of it if asked; whether there was any."""
    points = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    if not points:
        return False
    steps, values = zip(*points, strict=True)
    steps, values = zip(*thinned([*zip(steps, smooth(values) if mean else values, strict=True)]), strict=True)
    axes.plot(steps, values, **{"linewidth": 1.2, **style})
    return True


def plain(text: str) -> str:
    """A text that matplotlib draws as it is: no formula, and no label that it hides."""
    return " " * text.startswith("_") + text.replace("$", r"\$")
