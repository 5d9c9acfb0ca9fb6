"""check: the plan of a run, of a first one too."""

import argparse
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command, positive, settings
from road_ds.common.errors import Faults, RoadError
from road_ds.common.log import table, write_json
from road_ds.config.file import override, read_config


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "check", run)
    added.add_argument("config", nargs="+", metavar="FILE", help="a run's JSON file; with --write files with rows")
    settings(added)
    added.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="plans for so many GPUs (default: for this machine, its CPU where it has none)",
    )
    added.add_argument("--write", metavar="NEW", help="writes a first configuration over these rows, and plans it")


def run(options: argparse.Namespace) -> None:
    """Prints the plan of a run."""
    from road_ds.engine.plan import report

    path, overrides = options.config[0], options.set
    if options.write is not None:
        write(options.config, overrides, Path(options.write))
        path, overrides = options.write, []
    elif len(options.config) > 1:
        raise RoadError(f"{options.config[1]}: one configuration at a time; --write NEW makes one from files with rows")
    faults = Faults()
    config, ds = read_config(path, overrides, faults)
    print(report(config, ds, options.gpus, faults))


def write(paths: list[str], overrides: list[str], to: Path) -> None:
    """Writes a first configuration over files with rows, and says what was found in them. RoadError where there is one."""
    from road_ds.data.draft import data_sets_of, draft

    if to.exists():
        raise RoadError(f"--write {to}: is there already: give another name, or remove it")
    data: dict[str, Any] = {"road": {"datasets": data_sets_of(paths)}}
    for assignment in overrides:
        override(data, assignment)
    data, said = draft(data)
    try:
        write_json(to, data)
    except OSError as error:
        raise RoadError(f"--write {to}: cannot be written: {error.strerror}") from None
    print(table(said, ("data set", "rows", "task", "what is there", "dev")), "", sep="\n")
    print(f"Written: {to}. Train: deepspeed road_ds/train.py --deepspeed_config {to}\n")
