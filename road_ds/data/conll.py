"""Sentences of CoNLL files: a word and its tags a line, a blank line behind each sentence."""

import re
from collections.abc import Iterable, Iterator

from road_ds.common.log import counted
from road_ds.common.strict_json import quote
from road_ds.data.publishers import Bad, Dropped, Rows

DOCUMENT = "-DOCSTART-"  # the word of a line that begins a document, and is no word of it
SPACES = re.compile(r"[ \t]+")
BLANK = " \t\r\n"  # a no-break space may be a word
NO_WORD = re.compile(r"#|\d+[-.]\d+\t")  # CoNLL-U: a comment, words written as one (3-4), one that is not written (5.1)
FORM, UPOS = 1, 3  # its columns


def sentences(lines: Iterable[tuple[int, str | Bad]]) -> Rows:
    """A row for each sentence, from the line where it begins: its columns by number from 0, each a list with a value a word.

    "tokens" is the first column and "tags" the last; a file of one column has no tags. Fields are parted by tabs, in a line
    without one by spaces. A sentence with a faulty line is a Bad that names it.
    """
    width = 0  # fields of the first word's line
    for begun, words in _blocks(lines):
        fault = None
        columns: list[list[str]] = []
        for number, line in words:
            fields = line if isinstance(line, Bad) else _fields(line)
            if isinstance(fields, list):
                width = width or len(fields)
                fields = fields if len(fields) == width else Bad(_ragged(fields, width))
            if isinstance(fields, list) and not all(fields):
                fields = Bad(f"column {fields.index('')} is empty; expected a value in each column of a word")
            if isinstance(fields, Bad):
                fault = (number, fields)
                break
            columns = columns or [[] for _ in fields]
            for column, field in zip(columns, fields, strict=True):
                column.append(field)
        if fault is not None:
            yield f":{fault[0]}", fault[1]
        else:
            row: dict[str | int, list[str]] = {**dict(enumerate(columns)), "tokens": columns[0]}
            yield f":{begun}", row | ({"tags": columns[-1]} if width > 1 else {})


def universal(lines: Iterable[tuple[int, str | Bad]]) -> Rows:
    """The same of a CoNLL-U file: "tokens" are its syntactic words' forms, "tags" their universal parts of speech.

    Source: Universal Dependencies, CoNLL-U Format.
    """
    words = ((number, line) for number, line in lines if isinstance(line, Bad) or not NO_WORD.match(line))
    for place, row in sentences(words):
        if isinstance(row, Bad | Dropped):
            yield place, row
        elif UPOS in row:
            yield place, {**row, "tokens": row[FORM], "tags": row[UPOS]}
        else:
            found = counted(sum(isinstance(column, int) for column in row), "column")
            yield place, Bad(f"found {found}, expected the ten of CoNLL-U, parted by tabs")


def _ragged(fields: list[str], width: int) -> str:
    return (
        f"found {counted(len(fields), 'column')} ({quote(' '.join(fields)[:80])}), expected {width} as in the first line: a word and "
        "its tags a line, parted by tabs or by spaces, and a blank line between sentences"
    )


def _blocks(lines: Iterable[tuple[int, str | Bad]]) -> Iterator[tuple[int, list[tuple[int, str | Bad]]]]:
    """The lines of each sentence, with the number of the first; comments before it ("# id = 3") are left out."""
    block: list[tuple[int, str | Bad]] = []
    for number, line in lines:
        text = line if isinstance(line, Bad) else line.strip(BLANK)
        ends = not isinstance(text, Bad) and (not text or SPACES.split(text)[0] == DOCUMENT)
        if ends and block:
            yield block[0][0], block
            block = []
        comment = not isinstance(text, Bad) and not block and text.startswith("# ") and "=" in text
        if not ends and not comment:
            block.append((number, text))
    if block:
        yield block[0][0], block


def _fields(line: str) -> list[str]:
    return [field.strip(BLANK) for field in line.split("\t")] if "\t" in line else SPACES.split(line)
