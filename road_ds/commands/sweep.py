"""sweep: a search over settings."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command, settings
from road_ds.common.errors import RoadError
from road_ds.common.hub import expanded
from road_ds.common.log import table
from road_ds.config.file import setting


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "sweep", run)
    added.add_argument("sweep", metavar="FILE", help="a sweep: a run's file and the ranges of its keys")
    added.add_argument("--output", metavar="FOLDER", help="where all trials lie (default: runs/<sweep>)")
    settings(added, "overrides a key of every run, e.g. road.steps=20")
    added.add_argument("--launch", default="", metavar="OPTIONS", help="options of deepspeed, e.g. '--num_gpus 2'")


def run(options: argparse.Namespace) -> None:
    """Searches for the best settings of a run, trial after trial; what is done already stays."""
    from road_ds.recipes.findings import plot, report, write_best
    from road_ds.recipes.launcher import Launcher
    from road_ds.recipes.stages import describe, locked
    from road_ds.recipes.sweep import load_sweep
    from road_ds.recipes.trials import Trials, name_of, shown

    path = Path(options.sweep)
    sweep = load_sweep(path)
    output = expanded(options.output or f"runs/{path.stem}", "--output ")
    with locked(output) as lock:
        trials = Trials(sweep, path, output, dict(map(setting, options.set)))
        searched = [
            (key, str(among) if not isinstance(among, list) else ", ".join(map(shown, among)))
            for key, among in sweep.search.items()
        ]
        print(
            *([describe(trials.stages), ""] if trials.stages else []), table(searched, ("searched", "among")), sep="\n"
        )
        trials.carry_out(Launcher(shlex.split(options.launch), lock))
        best = trials.study.best()
        print("", report(trials.study), "", sep="\n")
        plot(trials.study, output / "sweep.png")
        if best is None:
            raise RoadError(f"{output}: no trial has finished: there is no best one")
        file = write_best(trials.own_runs(best)[0], output)
    print(f"Best: {name_of(best)}, {best.value:.2f}. Its configuration: {file}. Picture: {output / 'sweep.png'}")
