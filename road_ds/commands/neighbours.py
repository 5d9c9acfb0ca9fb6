"""neighbours: unlabelled texts that are near to a run's rows."""

import argparse
from typing import Any

from road_ds.commands.arguments import command, positive, settings


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "neighbours", run)
    added.add_argument(
        "--deepspeed_config", required=True, metavar="FILE", help="a run's JSON file with road.distill.neighbours"
    )
    settings(added)
    added.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="texts that an encoder reads at once"
    )


def run(options: argparse.Namespace) -> None:
    """Finds the unlabelled texts nearest to a run's rows, for `road.distill.neighbours`."""
    from road_ds.distillation.retrieve import retrieve

    retrieve(options.deepspeed_config, options.set, options.batch_size)
