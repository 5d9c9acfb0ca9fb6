"""teach: the soft targets of a run's teachers."""

import argparse
from typing import Any

from road_ds.commands.arguments import command, positive, settings


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "teach", run)
    added.add_argument("--deepspeed_config", required=True, metavar="FILE", help="a run's JSON file with road.distill")
    settings(added)
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")


def run(options: argparse.Namespace) -> None:
    """Writes the soft targets that a run's teachers give, for `road.distill`."""
    from road_ds.distillation.teach import teach

    teach(options.deepspeed_config, options.set, options.batch_size)
