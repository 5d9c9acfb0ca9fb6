"""evaluate: scores of models on labelled rows, and the GLUE table."""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import ROWS, command, positive, settings
from road_ds.commands.rows import read_rows
from road_ds.common.errors import RoadError, legible
from road_ds.common.hub import expanded
from road_ds.common.log import versions
from road_ds.config.file import load_config


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "evaluate", run)
    added.add_argument(
        "models", nargs="+", metavar="MODEL_FOLDER", help="an exported folder, a run folder, or a hub name"
    )
    source = added.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", help="labelled rows: .json (SQuAD), .jsonl, .tsv, .csv, or a split")
    source.add_argument("--config", metavar="FILE", help="a run's JSON file: the dev parts of its data sets are scored")
    source.add_argument("--glue", action="store_true", help="the GLUE table; MODEL_FOLDER is a run's model/ folder")
    added.add_argument("--path", metavar="FOLDER", help="with --glue: GLUE's files in FOLDER/<data set> (default: hub)")
    added.add_argument("--zip", metavar="FILE", help="with --glue: writes test predictions for the leaderboard")
    settings(added, f"{ROWS}; with --config a key of that file")
    added.add_argument("--output", metavar="FOLDER", help="writes results.json and predictions/ there, for compare")
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")
    added.add_argument("--json", action="store_true", help="prints JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """Prints the scores of a model, or of several whose logits are averaged, on labelled rows; or the GLUE table."""
    if options.glue:
        return glue_table(options)
    from road_ds.engine.run_folder import RunFolder
    from road_ds.models.ensemble import Ensemble, evaluate_run
    from road_ds.tasks.evaluation import report, write_results

    began, folder = time.monotonic(), options.output and expanded(options.output, "--output ")
    if folder and ((folder / "config.json").exists() or RunFolder(folder).is_run):
        raise RoadError(f"--output {folder}: holds a run or a model: give another folder")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)  # what cannot be written is said before the work
    if options.config:
        config, _ = load_config(options.config, options.set)
        results = evaluate_run(options.models, config, options.batch_size)
    else:
        examples = read_rows(options.data, options.set)
        results = {Path(options.data).name: Ensemble.of(options.models).evaluate(examples, options.batch_size)}
    if options.json:
        summaries = {name: result.summary() for name, result in results.items()}
        print(json.dumps(summaries if options.config else summaries.popitem()[1], indent=2))
    else:
        print(legible(report(results)))
    if folder:
        safe = {re.sub(r"[^A-Za-z0-9._-]", "_", name): result for name, result in results.items()}
        seconds = round(time.monotonic() - began, 1)
        write_results(folder, safe, {"models": options.models, "wall_seconds": seconds, "versions": versions()})


def glue_table(options: argparse.Namespace) -> None:
    """Prints the GLUE table and writes the leaderboard's zip where asked."""
    from road_ds.recipes import glue

    if len(options.models) > 1:
        raise RoadError(f"--glue: got {len(options.models)} folders: expected one, a run's model/ folder")
    models = glue.models_of(options.models[0])
    print(glue.report(glue.evaluate(models, options.path, options.batch_size)))
    if options.zip:
        glue.write_predictions(models, options.path, options.batch_size, options.zip)
