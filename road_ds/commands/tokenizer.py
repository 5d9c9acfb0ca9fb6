"""tokenizer: a vocabulary made from one's own text."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import ROWS, command, positive, settings
from road_ds.common.errors import RoadError


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "tokenizer", run)
    added.add_argument(
        "--text", nargs="+", required=True, metavar="FILE", help="files of text or rows, or folders of them"
    )
    added.add_argument("--vocab_size", type=positive, required=True, metavar="N", help="pieces at most; BERT has 30522")
    added.add_argument("--output", required=True, metavar="FOLDER", help="where to write; must not be there yet")
    added.add_argument("--cased", action="store_true", help="keeps capital letters and accents (default: lower case)")
    settings(added, ROWS)


def run(options: argparse.Namespace) -> None:
    """Makes a WordPiece tokenizer from text, for a model with fresh weights."""
    from road_ds.commands.rows import source_of
    from road_ds.common.log import counted, say
    from road_ds.data import wordpiece
    from road_ds.data.readers import Reading

    folder = Path(options.output).expanduser()
    if folder.exists():
        raise RoadError(f"--output {folder}: is there already: give another folder")
    sources = [source_of(name, options.set, scored=False) for name in options.text]

    def texts() -> Iterator[str]:
        for source in sources:
            for example in source.examples(Reading()):
                yield from filter(None, (example.text_a, example.text_b))

    tokenizer = wordpiece.train(texts, options.vocab_size, cased=options.cased)
    wordpiece.save(tokenizer, folder, cased=options.cased)
    size = tokenizer.get_vocab_size()
    less = "" if size == options.vocab_size else f" (not {options.vocab_size:,}: the text has no more that occur twice)"
    say(f"{folder}: {counted(size, 'piece')}{less}")
    say(f'use it as "model": {{"architecture": "electra", "tokenizer": "{folder}", "config": {{...}}}}')
