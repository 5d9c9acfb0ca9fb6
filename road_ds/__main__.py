"""Everything that is not training: python -m road_ds check | teach | recipe | compare | evaluate | predict | ... (--help)."""

import argparse
import json
import os
import re
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from road_ds.config import DatasetSpec, load_config, override, read_config, setting, validated
from road_ds.errors import Faults, RoadError, Terminated, legible, nearest, readable
from road_ds.log import is_main, print_anywhere, quiet_libraries, versions, write_json
from road_ds.strict_json import half_character, quote
from road_ds.surroundings import working_folder


def check(options: argparse.Namespace) -> None:
    """Prints the plan of a run."""
    from road_ds.check import report

    faults = Faults()
    config, ds = read_config(options.config, options.set, faults)
    print(report(config, ds, options.gpus, faults))


def teach(options: argparse.Namespace) -> None:
    """Writes the soft targets that a run's teachers give, for `road.distill`."""
    from road_ds.teach import teach

    teach(options.deepspeed_config, options.set, options.batch_size)


def evaluate(options: argparse.Namespace) -> None:
    """Prints the scores of a model, or of several whose logits are averaged, on labelled rows; or the GLUE table."""
    if options.glue:
        return glue_table(options)
    from road_ds.ensemble import Ensemble, evaluate_run
    from road_ds.evaluation import report, write_results

    began, folder = time.monotonic(), options.output and Path(options.output).expanduser()
    if folder and (folder / "config.json").exists():
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
    from road_ds import glue

    if len(options.models) > 1:
        raise RoadError(f"--glue: got {len(options.models)} folders: expected one, a run's model/ folder")
    models = glue.models_of(options.models[0])
    print(glue.report(glue.evaluate(models, options.path, options.batch_size)))
    if options.zip:
        glue.write_predictions(models, options.path, options.batch_size, options.zip)


def predict(options: argparse.Namespace) -> None:
    """Prints a model's predictions: as lines for one text, as JSON lines for a file or standard input."""
    from road_ds.data.readers import Example
    from road_ds.predictor import Predictor

    if options.text is not None:
        examples = [Example("text", options.text, options.pair or None, None, None, "--text")]
    elif options.file is not None:
        examples = read_rows(options.file, options.set, scored=False)
    else:
        examples = read_lines(sys.stdin.buffer.read())
    predictor = Predictor.load(options.model)
    for example, prediction in zip(examples, predictor.predict(examples, options.batch_size), strict=True):
        values = predictor.task.describe(prediction)
        if options.text is not None:
            width = max(map(len, values))
            print(*(legible(f"{key.ljust(width)}  {value}") for key, value in values.items()), sep="\n")
        else:
            print(legible(json.dumps({"id": example.id, **values}, ensure_ascii=False)))


def read_lines(data: bytes) -> list[Any]:
    """The examples of standard input, one a line; their ids are the lines' numbers."""
    from road_ds.data.readers import Example

    examples = []
    for number, line in enumerate(data.split(b"\n"), 1):
        where = f"standard input:{number}"
        try:
            text, *pair = line.decode("utf-8-sig").rstrip("\r").split("\t")
        except UnicodeDecodeError:
            raise RoadError(f"{where}: the line is not UTF-8") from None
        if len(pair) > 1:
            raise RoadError(f"{where}: {len(pair) + 1} columns, expected TEXT or TEXT<tab>SECOND TEXT")
        if text.strip():
            examples.append(Example(str(number), text, "".join(pair) or None, None, None, where))
    if not examples:
        raise RoadError("standard input is empty: give lines of TEXT or TEXT<tab>SECOND TEXT, or use --text or --file")
    return examples


def read_rows(source: str, settings: list[str], scored: bool = True) -> list[Any]:
    """The examples of a file or split, with the settings of `road.datasets` given as KEY=VALUE; labels where `scored`."""
    from road_ds.data.features import read_part

    block: dict[str, Any] = {"task": "given", "dev": source}
    for assignment in settings:
        override(block, assignment)
    return read_part("given", "dev", validated(DatasetSpec, block, "--set"), scored).examples


def datasets(options: argparse.Namespace) -> None:
    """Lists the data sets known by name, or shows one: its entry, where its rows are, and three of them."""
    from road_ds.data import catalog
    from road_ds.log import table

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

    from road_ds.data.features import Source
    from road_ds.data.readers import Reading

    spec = validated(DatasetSpec, {"task": "shown", "catalog": name, "train": part, "path": path, "max_rows": 3}, name)
    source = Source.of(name, "train", spec)
    print(f"\nrows come from {source.source} ({source.spec.format})")
    for example in islice(source.examples(Reading()), 3):
        gold = example.label if example.answers is None else [answer.text for answer in example.answers]
        shown = {"id": example.id, "text_a": example.text_a, "text_b": example.text_b, "gold": gold}
        print(legible(json.dumps(shown, ensure_ascii=False)))


def export(options: argparse.Namespace) -> None:
    """Writes the Hugging Face folders of a checkpoint."""
    from road_ds.export import export_checkpoint

    if not Path(options.checkpoint).is_dir():
        raise RoadError(f"{options.checkpoint}: no such folder: give runs/<name> or runs/<name>/checkpoints/step-N")
    for folder in export_checkpoint(Path(options.checkpoint), options.output and Path(options.output).expanduser()):
        print(folder)


def recipe(options: argparse.Namespace) -> None:
    """Makes the runs of a recipe, each through the deepspeed launcher; what is done already stays."""
    from road_ds.recipes.comparison import Finished
    from road_ds.recipes.launcher import Launcher
    from road_ds.recipes.recipe import load_recipe, plan
    from road_ds.recipes.stages import absent, carry_out, commands, describe, locked, look, results

    path = Path(options.recipe)
    recipe = load_recipe(path)
    output = Path(options.output or f"runs/{path.stem}").expanduser()
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


def compare(options: argparse.Namespace) -> None:
    """Prints runs side by side: mean and spread over seeds, and how sure each difference to a baseline is."""
    from road_ds.recipes.comparison import grouped

    json_file, html_file = (name and Path(name) for name in (options.json, options.html))
    say_comparison(grouped(options.runs), options.baseline, json_file, html_file)


def say_comparison(groups: Any, baseline: str | None, json_file: Path | None, html_file: Path | None) -> None:
    """Prints a comparison and writes the files that are asked for."""
    from road_ds.recipes.comparison import compare, text
    from road_ds.recipes.page import page

    report = compare(groups, baseline)
    print(text(report))
    try:
        if json_file:
            write_json(json_file, report)
        if html_file:
            html_file.parent.mkdir(parents=True, exist_ok=True)
            html_file.write_text(page(report, groups), encoding="utf-8")
    except OSError as error:
        raise RoadError(f"{error.filename}: cannot be written: {error.strerror}") from None


def score_squad2(options: argparse.Namespace) -> None:
    """Prints SQuAD 2.0 scores as JSON with the official evaluator's keys."""
    from road_ds import metrics

    golds = metrics.load_squad_golds(options.gold)
    predictions = metrics.load_predictions(options.predictions)
    chances = metrics.load_probabilities(options.na_prob) if options.na_prob else None
    print(json.dumps(metrics.squad_scores(golds, predictions, chances, options.na_prob_thresh), indent=2))


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number above 0")
    return int(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(
        prog="python -m road_ds", description="Everything around training.", allow_abbrev=False
    )
    root.add_argument("--debug", action="store_true", help="shows tracebacks of errors")
    root.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, of: Any = commands) -> argparse.ArgumentParser:
        added = of.add_parser(
            name, help=run.__doc__.splitlines()[0].rstrip("."), description=run.__doc__, allow_abbrev=False
        )
        added.set_defaults(run=run)
        return added

    rows = "settings of the rows as in road.datasets, e.g. columns.label=stars, format=hub, path=org/name"

    added = command("check", check)
    added.add_argument("config", metavar="FILE", help="a run's JSON file")
    added.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    added.add_argument(
        "--gpus",
        type=positive,
        metavar="N",
        help="plans for so many GPUs (default: for this machine, its CPU where it has none)",
    )

    added = command("teach", teach)
    added.add_argument("--deepspeed_config", required=True, metavar="FILE", help="a run's JSON file with road.distill")
    added.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="overrides a key of the file")
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")

    added = command("evaluate", evaluate)
    added.add_argument(
        "models", nargs="+", metavar="MODEL_FOLDER", help="an exported folder, a run folder, or a hub name"
    )
    source = added.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="FILE", help="labelled rows: .json (SQuAD), .jsonl, .tsv, .csv, or a split")
    source.add_argument("--config", metavar="FILE", help="a run's JSON file: the dev parts of its data sets are scored")
    source.add_argument("--glue", action="store_true", help="the GLUE table; MODEL_FOLDER is a run's model/ folder")
    added.add_argument("--path", metavar="FOLDER", help="with --glue: GLUE's files in FOLDER/<data set> (default: hub)")
    added.add_argument("--zip", metavar="FILE", help="with --glue: writes test predictions for the leaderboard")
    added.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"{rows}; with --config a key of that file"
    )
    added.add_argument("--output", metavar="FOLDER", help="writes results.json and predictions/ there, for compare")
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")
    added.add_argument("--json", action="store_true", help="prints JSON instead of a table")

    added = command("predict", predict)
    added.add_argument("model", metavar="MODEL_FOLDER", help="an exported folder, or a hub name")
    source = added.add_mutually_exclusive_group()
    source.add_argument("--text", help="one text; for span QA the question")
    source.add_argument(
        "--file", help="rows to predict; without --text and --file, lines of standard input (TEXT<tab>PAIR)"
    )
    added.add_argument("--pair", help="the second text, beside --text; for span QA the context")
    added.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=rows)
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")

    added = command("datasets", datasets)
    added.add_argument("name", nargs="?", metavar="NAME", help="shows this one (default: lists all)")
    added.add_argument("--path", metavar="FOLDER", help="the publisher's files, or a save_to_disk folder")
    added.add_argument("--part", help="whose rows are shown (default: the one to train on)")

    added = command("export", export)
    added.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="runs/<name>/checkpoints/step-N, or a run folder (its newest)"
    )
    added.add_argument("--output", metavar="FOLDER", help="where to write (default: model/ in the run folder)")

    added = command("recipe", recipe)
    added.add_argument("recipe", metavar="FILE", help="a recipe: stages, each a run or several")
    added.add_argument("--output", metavar="FOLDER", help="where all runs lie (default: runs/<recipe>)")
    added.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="overrides a key of every run, e.g. road.steps=20",
    )
    added.add_argument("--launch", default="", metavar="OPTIONS", help="options of deepspeed, e.g. '--num_gpus 2'")
    added.add_argument(
        "--redo", action="append", default=[], metavar="STAGE", help="makes a stage or run anew, and all that needs it"
    )
    added.add_argument("--dry-run", action="store_true", help="prints the plan and the command lines only")

    added = command("compare", compare)
    added.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; those that differ only in a -SEED at the end are one group"
        " (or name the group: NAME=FOLDER)",
    )  # fmt: skip
    added.add_argument("--baseline", metavar="NAME", help="the group that the others are compared with")
    added.add_argument("--json", metavar="FILE", help="writes the comparison as JSON")
    added.add_argument("--html", metavar="FILE", help="writes one HTML page with the curves")

    scores = commands.add_parser("score", help="Scores a file of predictions", allow_abbrev=False)
    kinds = scores.add_subparsers(required=True, metavar="KIND")
    added = command("squad2", score_squad2, kinds)
    added.add_argument("gold", metavar="GOLD.json", help="SQuAD 1.1 or 2.0 file")
    added.add_argument("predictions", metavar="PREDICTIONS.json", help='{"question id": "answer"}')
    added.add_argument(
        "--na-prob", metavar="FILE", help='{"question id": score of "no answer"}: adds best_* at the tuned threshold'
    )
    added.add_argument(
        "--na-prob-thresh", type=float, default=1.0, metavar="X", help="answers above it count as empty (default 1)"
    )
    return root


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0, 2 for a fault the user can mend, or that of a recipe's run that failed."""
    print_anywhere()
    options = parser().parse_args(arguments)
    quiet_libraries()
    try:
        working_folder()
        if (text := half_character(vars(options))) is not None:
            raise RoadError(f"{quote(text)} on the command line is not UTF-8: rename the file, or type the text again")
        options.run(options)
        sys.stdout.flush()
        return 0
    except Terminated:
        return 143  # as a process that ended on SIGTERM
    except KeyboardInterrupt:
        return 130  # as a process that ended on SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as `head` does: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a process that ended on SIGPIPE
    except (RoadError, OSError) as error:
        if not readable(error):
            raise
        if options.debug:
            traceback.print_exc()
        if is_main():
            print(f"error: {readable(error)}", file=sys.stderr)
        return getattr(error, "code", RoadError.code)


if __name__ == "__main__":
    code = main()
    if (
        "road_ds.heartbeat" in sys.modules
    ):  # only `teach` has several processes, and only there torch is loaded for sure
        from road_ds.heartbeat import leave

        leave(code)
    sys.exit(code)
