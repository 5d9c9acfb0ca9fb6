"""predict: what a model says of texts."""

import argparse
import json
import sys
from typing import Any

from road_ds.commands.arguments import ROWS, command, positive, settings
from road_ds.commands.rows import read_rows
from road_ds.common.errors import RoadError, legible


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "predict", run)
    added.add_argument("model", metavar="MODEL_FOLDER", help="an exported folder, or a hub name")
    source = added.add_mutually_exclusive_group()
    source.add_argument("--text", help="one text; for span QA the question")
    source.add_argument(
        "--file", help="rows to predict; without --text and --file, lines of standard input (TEXT<tab>PAIR)"
    )
    added.add_argument("--pair", help="the second text, beside --text; for span QA the context")
    settings(added, ROWS)
    added.add_argument("--batch-size", type=positive, default=64, metavar="N")


def run(options: argparse.Namespace) -> None:
    """Prints a model's predictions: as lines for one text, as JSON lines for a file or standard input."""
    from road_ds.data.readers import Example
    from road_ds.models.predictor import Predictor

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
