"""A comparison as one HTML file that needs nothing beside it: tables, seeds, curves."""

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from road_ds.recipes.comparison import COSTS_HEADER, HEADER, Groups, cost_lines, lines, notes

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .7em; text-align: left; border-bottom: 1px solid #ddd }
img { max-width: 100%; height: auto } .note { color: #666 } .sure { font-weight: 600 }
"""


def page(report: Mapping[str, Any], groups: Groups) -> str:
    """The whole file. Every name in it is escaped; the pictures are inside."""
    pictures = "".join(
        f'<h2>{escape(name)}</h2><img alt="scores and curves of {escape(name)}" src="{picture(name, part, groups)}">'
        for name, part in report["data_sets"].items()
    )
    runs = [
        (name, run.folder, run.seed, run.results.get("exported_step"), run.results.get("wall_seconds"), run.results.get("device"))
        for name, members in groups.items()
        for run in members
    ]  # fmt: skip
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Runs compared</title><style>{STYLE}</style></head>'
        f"<body><h1>Runs compared</h1>{html_table(lines(report), HEADER)}"
        + html_table(cost_lines(report), COSTS_HEADER)
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes(report))
        + pictures
        + "<h2>Runs</h2>"
        + html_table(runs, ("group", "folder", "seed", "exported step", "seconds", "device"))
        + "</body></html>\n"
    )


def html_table(rows: Any, header: Any) -> str:
    """A table, escaped; nothing is shown for None."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape('' if cell is None else str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def picture(dataset: str, part: Mapping[str, Any], groups: Groups) -> str:
    """Scores by group, dev metric and training loss over steps, as the address of an SVG image."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "road", "svg.fonttype": "path"}):
        figure = Figure(figsize=(15, 4.4), layout="constrained")
        FigureCanvasSVG(figure)
        dots, curves, losses = figure.subplots(1, 3)
        names = list(part["groups"])
        for place, (name, group) in enumerate(part["groups"].items()):
            color = f"C{place % 10}"
            dots.plot(
                [run["value"] for run in group["runs"]], [place] * len(group["runs"]), "o", color=color, alpha=0.5
            )
            dots.plot([group["mean"]], [place], "|", color=color, markersize=22)
            here = [run for run in groups[name] if dataset in run.results["scores"]]
            for axes, key in ((curves, f"{dataset}/{part['metric']}"), (losses, f"loss/{dataset}")):
                for number, run in enumerate(here):
                    points = [(r["step"], r[key]) for r in run.records() if r.get(key) is not None]
                    if points:
                        label = plain(name) if number == 0 else None
                        steps, values = zip(*points, strict=True)
                        axes.plot(
                            steps, smooth(values) if axes is losses else values, color=color, alpha=0.7, label=label
                        )
        dots.set_yticks(range(len(names)), [plain(name) for name in names])
        dots.invert_yaxis()
        titles = (
            f"{part['metric']}: each seed, and the mean",
            f"dev {part['metric']} over steps",
            "training loss over steps",
        )
        for axes, title in zip((dots, curves, losses), titles, strict=True):
            axes.set_title(plain(title))
            axes.grid(alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small")
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def plain(text: str) -> str:
    """A text that matplotlib draws as it is: no formula, and no label that it hides."""
    return " " * text.startswith("_") + text.replace("$", r"\$")


def smooth(values: Any) -> list[float]:
    """Means over a fiftieth of the values, up to each."""
    span = max(1, len(values) // 50)
    return [sum(p) / len(p) for i in range(len(values)) if (p := values[max(0, i - span) : i + 1])]
