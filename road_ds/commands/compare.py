"""compare: runs side by side."""

import argparse
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command
from road_ds.common.errors import RoadError
from road_ds.common.log import write_json


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "compare", run)
    added.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; those that differ only in a -SEED at the end are one group"
        " (or name the group: NAME=FOLDER)",
    )  # fmt: skip
    added.add_argument("--baseline", metavar="NAME", help="the group that the others are compared with")
    added.add_argument("--json", metavar="FILE", help="writes the comparison as JSON")
    added.add_argument("--html", metavar="FILE", help="writes one HTML page with the curves")


def run(options: argparse.Namespace) -> None:
    """Prints runs side by side: mean and spread over seeds, and how sure each difference to a baseline is."""
    from road_ds.recipes.comparison import grouped

    json_file, html_file = (name and Path(name) for name in (options.json, options.html))
    say_comparison(grouped(options.runs), options.baseline, json_file, html_file)


def say_comparison(groups: Any, baseline: str | None, json_file: Path | None, html_file: Path | None) -> None:
    """Prints a comparison and writes the files that are asked for."""
    from road_ds.recipes.comparison import compare, text
    from road_ds.recipes.page import page

    report = compare(groups, baseline)
    print(text(report))
    try:
        if json_file:
            write_json(json_file, report)
        if html_file:
            html_file.parent.mkdir(parents=True, exist_ok=True)
            html_file.write_text(page(report, groups), encoding="utf-8")
    except OSError as error:
        raise RoadError(f"{error.filename}: cannot be written: {error.strerror}") from None
