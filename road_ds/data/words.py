"""The words of a text, where each has a tag of its own: a list of them as a text, and where they lie in one."""

import re
from collections.abc import Sequence

GAP = re.compile(r"[ \t\n\r\f\v]+")
WORD = re.compile(r"[^ \t\n\r\f\v]+")
INSIDE = (
    "\u00a0"  # stands for white space in a word, and for an empty one, so that a text has as many words as the list
)


def joined(words: Sequence[str]) -> str:
    """The text whose words these are, parted by single spaces."""
    return " ".join(GAP.sub(INSIDE, word) or INSIDE for word in words)


def word_places(text: str) -> list[tuple[int, int]]:
    """The characters [start, end) of each word of a text, at least one: a blank text is a word."""
    return [match.span() for match in WORD.finditer(text)] or [(0, len(text))]
