"""check: the plan of a run."""

import argparse
from typing import Any

from road_ds.commands.arguments import command, positive, settings
from road_ds.common.errors import Faults
from road_ds.config.file import read_config


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "check", run)
    added.add_argument("config", metavar="FILE", help="a run's JSON file")
    settings(added)
    added.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="plans for so many GPUs (default: for this machine, its CPU where it has none)",
    )


def run(options: argparse.Namespace) -> None:
    """Prints the plan of a run."""
    from road_ds.engine.plan import report

    faults = Faults()
    config, ds = read_config(options.config, options.set, faults)
    print(report(config, ds, options.gpus, faults))
