"""A comparison as one HTML file that needs nothing beside it: tables, seeds, curves, what was set otherwise."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

from road_ds.common.pages import Html, document, element, folded, image, table
from road_ds.common.plots import draw, plain
from road_ds.recipes.comparison import COSTS_HEADER, HEADER, Groups, cost_lines, lines, notes

LEGEND = 10  # groups that a legend can name


def page(report: Mapping[str, Any], groups: Groups) -> str:
    """The whole file. Every name in it is escaped; the pictures are inside."""
    runs = [
        (name, str(run.folder), run.seed, run.results.get("exported_step"), run.results.get("wall_seconds"), run.results.get("device"))
        for name, members in groups.items()
        for run in members
    ]  # fmt: skip
    return document(
        "Runs compared",
        element("h1", "Runs compared"),
        table(lines(report), HEADER),
        table(cost_lines(report), COSTS_HEADER),
        *(element("p", note, class_="note") for note in notes(report)),
        *(piece for name, part in report["data_sets"].items() for piece in dataset_parts(name, part, groups)),
        *settings_parts(report),
        element("h2", "Runs"),
        table(runs, ("group", "folder", "seed", "exported step", "seconds", "device")),
    )


def dataset_parts(name: str, part: Mapping[str, Any], groups: Groups) -> Iterator[Html]:
    """One data set: a picture, and every metric of every group."""
    yield element("h2", name)
    yield image(picture(name, part, groups), "image/svg+xml", f"scores and curves of {name}")
    columns = {group: of["metrics"] for group, of in part["groups"].items()}
    metrics = dict.fromkeys([part["metric"], *(metric for of in columns.values() for metric in of)])
    columns["ignoring the text"] = part["ignoring_the_text"]
    rows = [
        (group, *("" if metric not in of else f"{of[metric]:.2f}" for metric in metrics))
        for group, of in columns.items()
        if of
    ]
    yield table(rows, ("mean", *metrics))


def settings_parts(report: Mapping[str, Any]) -> Iterator[Html]:
    """The settings that are not the same in all runs."""
    if report["settings"]:
        yield element("h2", "Settings that differ")
        rows = [
            (key, *(folded(", ".join("-" if value is None else str(value) for value in of), 100) for of in by.values()))
            for key, by in report["settings"].items()
        ]
        yield element("div", table(rows, ("setting", *next(iter(report["settings"].values())))), class_="settings")


def picture(dataset: str, part: Mapping[str, Any], groups: Groups) -> bytes:
    """Scores by group, dev metric and training loss over steps, as SVG; broken lines: what ignoring the text gives."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    names, metric = list(part["groups"]), part["metric"]
    with matplotlib.rc_context({"svg.hashsalt": "road", "svg.fonttype": "path"}):
        figure = Figure(figsize=(15, max(3.6, 0.28 * len(names) + 1.4)), layout="constrained")
        FigureCanvasSVG(figure)
        dots, curves, losses = figure.subplots(1, 3)
        for place, (name, group) in enumerate(part["groups"].items()):
            color = f"C{place % 10}"
            values = [run["value"] for run in group["runs"]]
            dots.plot(values, [place] * len(values), "o", color=color, alpha=0.5)
            dots.plot([group["mean"]], [place], "|", color=color, markersize=22)
            for number, run in enumerate(run for run in groups[name] if dataset in run.results["scores"]):
                label = plain(name) if number == 0 and len(names) <= LEGEND else None
                style: dict[str, Any] = {"color": color, "alpha": 0.7, "label": label}
                records = run.records()
                draw(curves, records, f"{dataset}/{metric}", marker=".", **style)
                draw(losses, records, f"loss/{dataset}", mean=True, **style)
        if (base := part["ignoring_the_text"].get(metric)) is not None:
            for mark in (dots.axvline, curves.axhline):
                mark(base, color="0.4", linewidth=1, linestyle="--", label="ignoring the text")
        dots.set_yticks(range(len(names)), [plain(name) for name in names])
        dots.set_ylim(len(names) - 0.5, -0.5)
        titles = (f"{metric}: each seed, and the mean", f"dev {metric} over steps", "training loss over steps")
        for axes, title in zip((dots, curves, losses), titles, strict=True):
            axes.set_title(plain(title))
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()
