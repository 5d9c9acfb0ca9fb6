"""Negative questions: unanswerable copies of span-QA questions, one entity of each replaced (ROaD, Table 3)."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from road_ds.data.publishers import HISTORY
from road_ds.data.readers import Example, Reading

POOL = 50_000  # entities kept of each kind
TRIES = 20
SEED = 0  # part of what the rows are, like that of a held-out part

WORD = re.compile(r"[^\W_][\w'’-]*")
LINKS = {"of", "the", "de", "la", "van", "von", "and"}  # they may stand between the words of a name
NUMBERS = {"year": re.compile(r"\b(?:1\d|20)\d\d\b"), "number": re.compile(r"\b\d(?:[\d,.]*\d)?\b")}


def entities(question: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of each entity in a question, in code points: years, other numbers, runs of capitalised words.

    The first word is capitalised anyway and counts as no name.
    """
    question = question.partition(HISTORY)[0]  # what was asked before stays as it was
    found: list[tuple[str, int, int]] = []
    for kind, pattern in NUMBERS.items():
        for match in pattern.finditer(question):
            if not any(start < match.end() and match.start() < end for _, start, end in found):
                found.append((kind, match.start(), match.end()))
    return sorted([*found, *_names(question)], key=lambda entity: entity[1])


def _names(question: str) -> Iterator[tuple[str, int, int]]:
    """Runs of capitalised words with nothing but spaces and linking words between them."""
    start = end = 0  # of the run so far; empty where they are equal
    for word in list(WORD.finditer(question))[1:]:
        if not word[0][0].isupper():
            continue
        if start < end and all(part in LINKS for part in question[end : word.start()].split()):
            end = word.end()
            continue
        if start < end:
            yield "name", start, end
        start, end = word.span()
    if start < end:
        yield "name", start, end


def with_negatives(read: Callable[[], Iterator[Example]], share: float, reading: Reading) -> Iterator[Example]:
    """The examples, and behind a `share` of the answerable ones a copy that its context does not answer.

    In the copy an entity that the context names is replaced by one of the same kind from another question, which the
    context does not name; the copy's id is `<id>-negative`. Questions without such an entity get none. `read` gives the
    examples anew at each call: the first time entities are collected, so that nothing else is held in memory. How many
    were made is noted in `reading`.
    """
    # Each entity once, in the order of the rows.
    pool: dict[str, dict[str, None]] = {kind: {} for kind in (*NUMBERS, "name")}
    for example in read():
        for kind, start, end in entities(example.text_a):
            if len(pool[kind]) < POOL:
                pool[kind].setdefault(example.text_a[start:end])
    known = {kind: list(texts) for kind, texts in pool.items()}
    generator = np.random.default_rng(SEED)
    for example in read():
        yield example
        if example.answers and generator.random() < share:
            question = _replaced(example, known, generator)
            if question is not None:
                reading.negatives += 1
                yield replace(example, id=f"{example.id}-negative", text_a=question, answers=())


def _replaced(example: Example, known: dict[str, list[str]], generator: np.random.Generator) -> str | None:
    """The question about another entity; None where it names none of its context, or no other fits."""
    question, context = example.text_a, (example.text_b or "").casefold()
    named = [e for e in entities(question) if question[e[1] : e[2]].casefold() in context]
    if not named:
        return None
    kind, start, end = named[generator.integers(len(named))]
    for _ in range(TRIES):
        other = known[kind][generator.integers(len(known[kind]))]
        if other.casefold() not in context:
            return question[:start] + other + question[end:]
    return None
