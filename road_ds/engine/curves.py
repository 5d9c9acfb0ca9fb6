"""The curves of a run."""

from pathlib import Path
from typing import Any


def plot_curves(records: list[dict[str, Any]], metrics: list[str], path: str | Path) -> None:
    """Draws a run's metrics.jsonl: loss per data set, learning rate, and the given dev metrics over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def curve(key: str) -> list[tuple[int, float]]:
        return [(record["step"], record[key]) for record in records if record.get(key) is not None]

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates, scores = figure.subplots(1, 3)
    for key in sorted({key for record in records for key in record if key.startswith("loss/")}):
        if not (points := curve(key)):  # no loss of it was finite
            continue
        steps, values = zip(*points, strict=True)
        span = max(1, len(values) // 50)
        smooth = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - span) : i + 1])]
        losses.plot(steps, smooth, label=key.removeprefix("loss/"), linewidth=1.2)
    if curve("lr"):
        rates.plot(*zip(*curve("lr"), strict=True))
    for key in metrics:
        if curve(key):
            scores.plot(*zip(*curve(key), strict=True), marker="o", markersize=3, label=key)
    for axes, title in ((losses, "training loss"), (rates, "learning rate (head)"), (scores, "dev metrics")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
