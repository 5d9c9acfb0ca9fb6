"""The curves of a run: a row of panels for each head, so that many data sets can be told apart."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from road_ds.common.plots import draw, plain

PARTS = (("hard", "--"), ("soft", ":"), ("layers", "-."), ("neighbours", (0, (1, 3))))  # of a loss with teachers
PANEL, BESIDE, BETWEEN, BELOW = 4.6, 0.75, 0.55, 0.5  # of a panel, left of it, above it, below all; inches
STYLE: Any = {"axes.titlesize": "medium", "axes.titley": 1.0, "axes.grid": True, "grid.alpha": 0.3}


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
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = list(records)
    by_head: dict[str, list[str]] = {}
    for name, head in of.items():
        by_head.setdefault(head, []).append(name)
    parted = any(f"{part}/{name}" in line for line in lines for part, _ in PARTS for name in of)
    heights = [*(max(1.9, 0.21 * len(names) + 0.1) for names in by_head.values()), 1.9]
    with rc_context(STYLE):
        figure = Figure(dpi=100)
        FigureCanvasAgg(figure)
        rows = figure.subplots(
            len(heights), 2 + parted, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
        )
        for (head, names), row in zip(by_head.items(), rows, strict=False):
            _draw_head(head, names, row, lines, headlines, baselines)
        last = {"lr": "learning rate (head)", "grad_norm": "gradient norm", "loss": "loss over all passes"}
        for axes, (key, title) in zip(rows[-1], last.items(), strict=False):
            draw(axes, lines, key, mean=key != "lr", color="0.3")
            axes.set(title=title, xlabel="step")
        rows[0, 0].set_xlim(0, 1.02 * max([line["step"] for line in lines], default=1))
        for axes in rows.flat:
            axes.yaxis.get_major_locator().set_params(nbins=5)
        _set_apart(figure, heights, rows)
        _write(figure, path)


def _write(figure: Any, path: str | Path) -> None:
    figure.savefig(path)


def _set_apart(figure: Any, heights: Sequence[float], rows: Any) -> None:
    """Gives the panels their places: matplotlib's own layouts draw all labels several times to find them."""
    legends = [legend for row in rows if (legend := row[-1].get_legend())]
    aside = 0.2 + max((legend.get_window_extent().width for legend in legends), default=0) / figure.dpi
    width, height = rows.shape[1] * (BESIDE + PANEL) + aside, sum(heights) + len(heights) * BETWEEN + BELOW
    figure.set_size_inches(width, height)
    figure.subplots_adjust(
        left=BESIDE / width, right=1 - aside / width, top=1 - BETWEEN / height, bottom=BELOW / height,
        wspace=BESIDE / PANEL, hspace=BETWEEN * len(heights) / sum(heights),
    )  # fmt: skip


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
