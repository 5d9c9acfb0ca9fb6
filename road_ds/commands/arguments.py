"""What the command lines of several commands share."""

import argparse
from collections.abc import Callable
from typing import Any

ROWS = "settings of the rows as in road.datasets, e.g. columns.label=stars, format=hub, path=org/name"


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], **options: Any
) -> argparse.ArgumentParser:
    """The command line of one more command, described by the docstring of what it runs."""
    about = run.__doc__ or ""
    added = commands.add_parser(
        name, help=about.splitlines()[0].rstrip("."), description=about, allow_abbrev=False, **options
    )
    added.set_defaults(run=run)
    return added


def settings(parser: argparse.ArgumentParser, about: str = "overrides a key of the file") -> None:
    """Adds --set, which may be given many times."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=about)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number above 0")
    return int(text)
