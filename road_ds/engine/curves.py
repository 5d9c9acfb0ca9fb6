"""The curves of a run: a row of panels for each head, so that many data sets can be told apart."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from road_ds.common.plots import draw, plain

PARTS = (("hard", "--"), ("soft", ":"), ("layers", "-."), ("neighbours", (0, (1, 3))))  # of a loss with teachers


def plot_curves(
    records: Iterable[dict[str, Any]],
    of: Mapping[str, str],
    headlines: Mapping[str, str],
    baselines: Mapping[str, float],
    path: str | Path,
) -> None:
    """Draws a run's metrics.jsonl: for each head loss, its parts where there are teachers, and dev metric; learning rate below.

    of: the head of each data set; headlines: the metric of each that is drawn; baselines: and what ignoring the text gives.
    """
    from matplotlib.figure import Figure

    lines = list(records)
    by_head: dict[str, list[str]] = {}
    for name, head in of.items():
        by_head.setdefault(head, []).append(name)
    parted = any(f"{part}/{name}" in line for line in lines for part, _ in PARTS for name in of)
    width = 2 + parted
    heights = [max(2.6, 0.21 * len(names) + 0.7) for names in by_head.values()]
    figure = Figure(figsize=(5.4 * width + 1.6, sum(heights) + 2.6), dpi=100, layout="constrained")
    rows = figure.subplots(len(by_head) + 1, width, squeeze=False, gridspec_kw={"height_ratios": [*heights, 2.6]})
    for (head, names), row in zip(by_head.items(), rows, strict=False):
        _draw_head(head, names, row, lines, headlines, baselines)
    last = dict(zip(("lr", "grad_norm", "loss"), rows[-1], strict=False))
    for axes, key, title in zip(
        last.values(), last, ("learning rate (head)", "gradient norm", "loss over all passes"), strict=False
    ):
        draw(axes, lines, key, mean=key != "lr", color="0.3")
        axes.set(title=title, xlabel="step")
    steps = max([line["step"] for line in lines], default=1)
    for axes in rows.flat:
        axes.set_xlim(0, 1.02 * steps)
        axes.grid(alpha=0.3)
        axes.title.set_fontsize("medium")
    _write(figure, path)


def _write(figure: Any, path: str | Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(path)  # `savefig` draws all twice: at first for the layout alone


def _draw_head(
    head: str,
    names: Sequence[str],
    row: Sequence[Any],
    lines: Sequence[dict[str, Any]],
    headlines: Mapping[str, str],
    baselines: Mapping[str, float],
) -> None:
    losses, scores = row[0], row[-1]
    metrics = dict.fromkeys(headlines[name] for name in names if name in headlines)
    losses.set_title(plain(f"{head}: training loss"))
    scores.set_title(plain(f"{head}: dev {', '.join(metrics)}" if metrics else f"{head}: no dev rows"))
    many = len(names) > 10
    for place, name in enumerate(names):
        style = {"color": _color(place, many), "linestyle": "-"}
        draw(losses, lines, f"loss/{name}", mean=True, label=plain(name), **style)
        if name in headlines:
            draw(scores, lines, f"{name}/{headlines[name]}", marker="o", markersize=3, **style)
        if name in baselines:
            scores.axhline(baselines[name], linewidth=0.8, alpha=0.6, **{**style, "linestyle": "--"})
        if len(row) > 2:
            for part, dashes in PARTS:
                label = part if place == 0 else None
                draw(row[1], lines, f"{part}/{name}", mean=True, label=label, **{**style, "linestyle": dashes})
    if len(row) > 2:
        row[1].set_title(plain(f"{head}: parts of the loss"))
        if row[1].get_legend_handles_labels()[0]:
            row[1].legend(fontsize="small")
    handles = losses.get_legend_handles_labels()
    if handles[0]:
        scores.legend(*handles, fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def _color(place: int, many: bool) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](place % 20) if many else f"C{place}"
