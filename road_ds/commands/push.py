"""push: an exported folder to a hub."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command
from road_ds.common.errors import RoadError
from road_ds.common.hub import TASK_FILE, head_folder, upload


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "push", run)
    added.add_argument("model", metavar="MODEL_FOLDER", help="an exported folder, or the folder of a run with one head")
    added.add_argument("name", metavar="ORG/NAME", help="the repository; it is made where it is not there")
    added.add_argument("--private", action="store_true", help="makes a new repository private")


def run(options: argparse.Namespace) -> None:
    """Uploads an exported folder to a hub, through its own client and the login that this has (`hf auth login`)."""
    from road_ds.models.export import INDEX, made_whole

    folder = Path(head_folder(options.model, ""))
    if not (folder / TASK_FILE).exists():
        raise RoadError(f"{folder}: no exported model ({TASK_FILE} is missing): give runs/<name>/model/<task>")
    with tempfile.TemporaryDirectory() as staged:
        if (folder / INDEX).exists():
            folder = made_whole(folder, Path(staged) / folder.name)
        print(upload(folder, options.name, options.private))
