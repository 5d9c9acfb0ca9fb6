"""recipe: runs of runs."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command, settings
from road_ds.commands.compare import say_comparison
from road_ds.common.errors import RoadError, nearest
from road_ds.common.hub import expanded
from road_ds.config.file import setting


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "recipe", run)
    added.add_argument("recipe", metavar="FILE", help="a recipe: stages, each a run or several")
    added.add_argument("--output", metavar="FOLDER", help="where all runs lie (default: runs/<recipe>)")
    settings(added, "overrides a key of every run, e.g. road.steps=20")
    added.add_argument("--launch", default="", metavar="OPTIONS", help="options of deepspeed, e.g. '--num_gpus 2'")
    added.add_argument(
        "--redo", action="append", default=[], metavar="STAGE", help="makes a stage or run anew, and all that needs it"
    )
    added.add_argument("--dry-run", action="store_true", help="prints the plan and the command lines only")


def run(options: argparse.Namespace) -> None:
    """Makes the runs of a recipe, each through the deepspeed launcher; what is done already stays."""
    from road_ds.recipes.comparison import Finished
    from road_ds.recipes.launcher import Launcher
    from road_ds.recipes.recipe import load_recipe, plan
    from road_ds.recipes.stages import absent, carry_out, commands, describe, locked, look, results

    path = Path(options.recipe)
    recipe = load_recipe(path)
    output = expanded(options.output or f"runs/{path.stem}", "--output ")
    runs = plan(recipe, path, output, dict(map(setting, options.set)))
    stages = set(recipe.compare.stages or recipe.stages) if recipe.compare else set()
    if recipe.compare and recipe.compare.baseline not in (known := {r.group for r in runs if r.stage in stages}):
        raise RoadError(
            f"{path}: compare.baseline: got {recipe.compare.baseline!r}{nearest(recipe.compare.baseline, known)}; "
            f"the recipe compares {', '.join(sorted(known))}"
        )
    launch = shlex.split(options.launch)
    if options.dry_run:
        steps = look(runs, options.redo, rows=False)
        gone = ["\n  ".join(["not there yet:", *said])] if (said := absent(steps)) else []
        lines = (shlex.join(c) for step in steps for c in commands(step, Launcher(launch)))
        print(describe(steps), *gone, *lines, sep="\n\n")
        return
    with locked(output) as lock:
        steps = look(runs, options.redo)
        print(describe(steps), "", sep="\n", flush=True)
        carry_out(steps, Launcher(launch, lock))
    print("", results(steps), "", sep="\n")
    groups: dict[str, Any] = {}
    for run in runs:
        if run.stage in stages:
            groups.setdefault(run.group, []).append(Finished.open(run.folder))
    if recipe.compare:
        say_comparison(groups, recipe.compare.baseline, output / "compare.json", output / "compare.html")
