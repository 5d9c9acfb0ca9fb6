"""export: Hugging Face folders from a checkpoint."""

import argparse
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command
from road_ds.common.errors import RoadError
from road_ds.common.hub import expanded


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "export", run)
    added.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="runs/<name>/checkpoints/step-N, or a run folder (its newest)"
    )
    added.add_argument("--output", metavar="FOLDER", help="where to write (default: model/ in the run folder)")


def run(options: argparse.Namespace) -> None:
    """Writes the Hugging Face folders of a checkpoint."""
    from road_ds.engine.weights import export_checkpoint

    if not Path(options.checkpoint).is_dir():
        raise RoadError(f"{options.checkpoint}: no such folder: give runs/<name> or runs/<name>/checkpoints/step-N")
    for folder in export_checkpoint(Path(options.checkpoint), options.output and expanded(options.output, "--output ")):
        print(folder)
