"""datasets: the data sets known by name."""

import argparse
import json
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command
from road_ds.common.errors import legible
from road_ds.config.road import DatasetSpec
from road_ds.config.settings import validated


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "datasets", run)
    added.add_argument("name", nargs="?", metavar="NAME", help="shows this one (default: lists all)")
    added.add_argument("--path", metavar="FOLDER", help="the publisher's files, or a save_to_disk folder")
    added.add_argument("--part", help="whose rows are shown (default: the one to train on)")


def run(options: argparse.Namespace) -> None:
    """Lists the data sets known by name, or shows one: its entry, where its rows are, and three of them."""
    from road_ds.common.log import table
    from road_ds.config import catalog

    if options.name is None:
        rows = [
            (name, e.task, e.metric, *(f"{e.rows[part]:,}" if part in e.rows else "" for part in ("train", "dev")),
             e.hub.path if e.hub else "-")
            for name, e in catalog.CATALOG.items()
        ]  # fmt: skip
        print(table(rows, ("data set", "task", "metric", "train", "dev", "hub")))
        return
    entry = catalog.entry(options.name)
    task = catalog.TASKS[entry.task]
    hub = entry.hub and " ".join(filter(None, (entry.hub.path, entry.hub.config)))
    shown = {
        "task": f"{entry.task} ({task['type']}{': ' + ', '.join(task['labels']) if 'labels' in task else ''})",
        "metric": entry.metric,
        "rows": ", ".join(f"{part} {count:,}" for part, count in entry.rows.items()) or "not known",
        "left out": entry.dropped,
        "hub": hub or "not there",
        "files": catalog.bring(entry),
        "licence": entry.licence,
        "citation": entry.citation,
        "note": entry.note,
    }
    print(*(f"{key:<9} {value}" for key, value in shown.items() if value), sep="\n")
    usual = f"data/{options.name}"
    path = options.path or (usual if Path(usual).is_dir() else None)
    if path is None:
        place = "the hub" if entry.hub else usual
        print(
            f'\nrows would come from {place}; --path FOLDER shows three of a folder ("{options.name}": {{"path": ...}})'
        )
    else:
        show_rows(options.name, options.part or entry.train, path)


def show_rows(name: str, part: str, path: str) -> None:
    """Prints the first three examples of a part."""
    from itertools import islice

    from road_ds.data.readers import Reading
    from road_ds.data.sources import Source

    spec = validated(DatasetSpec, {"task": "shown", "catalog": name, "train": part, "path": path, "max_rows": 3}, name)
    source = Source.of(name, "train", spec)
    print(f"\nrows come from {source.source} ({source.spec.format})")
    for example in islice(source.examples(Reading()), 3):
        gold = example.label if example.answers is None else [answer.text for answer in example.answers]
        shown = {"id": example.id, "text_a": example.text_a, "text_b": example.text_b, "gold": gold}
        print(legible(json.dumps(shown, ensure_ascii=False)))
