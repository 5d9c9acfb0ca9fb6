"""predict: what models say of texts."""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import ROWS, command, positive, settings
from road_ds.commands.rows import read_rows
from road_ds.common.errors import RoadError, legible

Values = dict[str, Any]
LONE = ""  # the name of a model that is asked alone


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "predict", run)
    added.add_argument(
        "models",
        nargs="+",
        metavar="MODEL_FOLDER",
        help="an exported folder, a hub name, or a run folder: all its heads that read such rows",
    )
    source = added.add_mutually_exclusive_group()
    source.add_argument("--text", help="one text; for span QA the question")
    source.add_argument(
        "--file", help="rows to predict; without --text and --file, lines of standard input (TEXT<tab>PAIR)"
    )
    added.add_argument("--pair", help="the second text, beside --text; for span QA the context")
    settings(added, ROWS)
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")
    added.add_argument("--with-text", action="store_true", help="gives the texts of a row beside its id")
    added.add_argument("--csv", action="store_true", help="prints CSV with a header")


def run(options: argparse.Namespace) -> None:
    """Prints models' predictions: as lines for one text, as JSON lines or CSV for a file or standard input."""
    from road_ds.data.readers import Example

    if options.text is not None:
        examples = [Example("text", options.text, options.pair or None, None, None, "--text")]
    elif options.file is not None:
        examples = read_rows(options.file, options.set, scored=False)
    else:
        examples = read_lines(sys.stdin.buffer.read())
    answers = ask(options.models, examples, options.batch_size)
    rows = [row_of(example, options.with_text) for example in examples]  # whose keys no label takes
    if options.csv:
        write_csv([{**row, **flat(said), **row} for row, said in zip(rows, answers, strict=True)])
    elif options.text is not None:
        values = flat(answers[0])
        width = max(map(len, values))
        print(*(legible(f"{key.ljust(width)}  {value}") for key, value in values.items()), sep="\n")
    else:
        for row, said in zip(rows, answers, strict=True):
            print(legible(json.dumps({**row, **said, **row}, ensure_ascii=False)))


def ask(names: Sequence[str], examples: Sequence[Any], batch_size: int) -> list[Values]:
    """What models say of each example: a lone one's values, or of each of several by its name. One is in memory at a time."""
    from road_ds.models.predictor import Predictor

    said: dict[str, list[Values]] = {}
    for name, folder in models_of(names, examples).items():
        predictor = Predictor.load(folder)
        said[name] = [predictor.task.describe(p) for p in predictor.predict(examples, batch_size)]
    if LONE in said:
        return said[LONE]
    return [dict(zip(said, values, strict=True)) for values in zip(*said.values(), strict=True)]


def models_of(names: Sequence[str], examples: Sequence[Any]) -> dict[str, str]:
    """The models to ask, by the name of their head, LONE for one alone; of a run's heads those that read such rows.

    RoadError where none does, or two have one name.
    """
    from road_ds.common.hub import model_folder, trained_heads
    from road_ds.common.log import warn
    from road_ds.models.export import read_task

    every: dict[str, Mapping[str, Path | str]] = {
        name: trained_heads(name) or {Path(name).name: name} for name in names
    }
    if [len(heads) for heads in every.values()] == [1]:
        return {LONE: names[0]}
    kinds = {example.text_b is not None for example in examples}
    pairs = kinds.pop() if len(kinds) == 1 else None
    rows = {True: "pairs of texts", False: "lone texts", None: "lone texts and pairs"}[pairs]
    found: dict[str, str] = {}
    for name, heads in every.items():
        able = [head for head, at in heads.items() if len(heads) == 1 or read_task(model_folder(str(at))).reads(pairs)]
        others = [head for head in heads if head not in able]
        if not able:
            raise RoadError(f"{name}: the rows are {rows}, which none of its heads reads ({', '.join(heads)})")
        if others:
            warn(f"{name}: the rows are {rows}: left out are {', '.join(others)}")
        for head in able:
            if head in found:
                raise RoadError(f"{found[head]} and {heads[head]}: two models called {head}: ask one after the other")
            found[head] = str(heads[head])
    return found


def row_of(example: Any, with_text: bool) -> Values:
    """What is given of a row beside the predictions."""
    choices = None if example.choices is None else {choice.key: choice.text for choice in example.choices}
    texts = {"text_a": example.text_a, "text_b": example.text_b, "choices": choices} if with_text else {}
    return {"id": example.id, **{key: text for key, text in texts.items() if text is not None}}


def flat(said: Values) -> Values:
    """The values of one model, or those of several as "<model>.<name>"."""
    parts = (
        {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
        for name, value in said.items()
    )
    return {key: value for part in parts for key, value in part.items()}


def write_csv(rows: Sequence[Values]) -> None:
    """Prints rows with a header; what is no text or number stands there as JSON, and what is null is empty."""
    writer = csv.DictWriter(sys.stdout, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: cell(value) for key, value in row.items()})


def cell(value: Any) -> Any:
    """A value as a field of CSV."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
