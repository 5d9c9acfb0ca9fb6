"""Raw rows -> Examples, the same way for every format: columns, labels, answers at their offsets, samples."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from road_ds.common.errors import RoadError, nearest
from road_ds.common.strict_json import quote
from road_ds.config.road import Columns, DatasetSpec
from road_ds.data.choices import Choice, choices_of
from road_ds.data.columns import SECOND, Found, find, headless
from road_ds.data.files import Piece, origin_of, pieces
from road_ds.data.formats import FORMATS, plain, quote_all
from road_ds.data.labels import Label, flagged, has_any, label_of, whole
from road_ds.data.publishers import SHAPES, Bad, Dropped, Row, Rows
from road_ds.data.words import joined


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    start: int  # in code points of text_b


@dataclass(frozen=True, slots=True)
class Example:
    id: str
    text_a: str  # span QA: the question
    text_b: str | None  # span QA: the context
    label: Label | None
    answers: tuple[Answer, ...] | None  # None: no answers column; (): unanswerable
    where: str  # "train.tsv:17", "dev.json data[0].paragraphs[3].qas[1]"
    choices: tuple[Choice, ...] | None = None


@dataclass
class Reading:
    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one message per bad row that skip_bad allowed
    dropped: dict[str, int] = field(default_factory=dict)  # rows left out, by label of drop_labels
    negatives: int = 0  # questions made


def read(source: str, spec: DatasetSpec) -> Reading:
    """All examples of a file or folder (or of a split, with format "hub" or "disk"), and what was left out. See `stream`."""
    reading = Reading()
    reading.examples = list(stream(source, spec, reading))
    return reading


def stream(source: str, spec: DatasetSpec, reading: Reading, chosen: np.ndarray | None = None) -> Iterator[Example]:
    """The examples of a file, folder or split one by one; what is left out is noted in `reading`, whose examples stay empty.

    chosen: numbers of the rows to take, ascending; by default those of `choose`. Rows without an id column are called
    "<file stem>-<row>", counted from 0 over all rows of the file; in a folder "<path there>-<row>".
    RoadError: no such file or format, a bad row beyond `skip_bad`, or no rows left.
    """
    if chosen is None and spec.sample is not None:
        chosen = choose(source, spec)[0]
    wanted, empty = iter(() if chosen is None else chosen), True
    following = next(wanted, None)
    for number, example in enumerate(_rows(source, spec, reading)):
        if chosen is not None and number != following:
            continue
        following, empty = next(wanted, None), False
        yield example
        if spec.both_orders and example.text_b is not None:
            yield replace(example, id=f"{example.id}-swapped", text_a=example.text_b, text_b=example.text_a)
    if empty:
        left_out = f"{len(reading.skipped)} bad rows skipped, rows dropped by label: {reading.dropped or 'none'}"
        raise RoadError(
            f"{origin_of(source, spec)}: the data set is empty ({left_out}); give a source with at least one row"
        )


def choose(source: str, spec: DatasetSpec) -> tuple[np.ndarray, list[Any]]:
    """Numbers and labels of the rows that `sample` draws, all without it: one pass that holds no texts.

    A question's label is whether it has an answer.
    """
    labels = (e.label if e.answers is None else bool(e.answers) for e in _rows(source, spec, Reading()))
    if spec.sample is not None:
        return draw(labels, spec.sample, spec.sample_seed, stratified=spec.stratified)
    every = list(labels)
    return np.arange(len(every)), every


def of_rows(rows: Iterable[Row]) -> list[Example]:
    """The examples of rows in memory, of which neither labels nor answers are read. RoadError names a row by its number."""
    spec = DatasetSpec(task="", columns=Columns(id=None, label=None, answers=None))
    places = ((f"row {number}", row) for number, row in enumerate(rows))
    return list(_plain_examples(places, Piece("", "", "", "", "row"), spec, Reading()))


def _examples(piece: Piece, spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    return _plain_examples(_shaped(FORMATS[piece.format](piece.source, spec), spec), piece, spec, reading)


def _plain_examples(rows: Rows, piece: Piece, spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    columns: Found | None = None  # as far as the rows so far have settled them
    names: tuple[str | int, ...] = ()  # of the row that `columns` was found for
    for number, (place, row) in enumerate(rows):
        if isinstance(row, Dropped):
            reading.dropped[row] = reading.dropped.get(row, 0) + 1
            continue
        try:
            if isinstance(row, Bad):
                raise row
            if columns is None or names != tuple(row):
                columns, names = find(spec.columns, row, columns), tuple(row)
            label = _label(row, columns, spec.label_separator)
            if label is not None and has_any(label, spec.drop_labels):
                what = ", ".join(label) if isinstance(label, tuple) else str(label)
                reading.dropped[what] = reading.dropped.get(what, 0) + 1
                continue
            example = _example(row, columns, label, f"{piece.stem}-{number}", piece.name + place)
        except Bad as bad:
            reading.skipped.append(f"{piece.origin}{place}: {bad}")
            if len(reading.skipped) > spec.skip_bad:
                raise RoadError(
                    f"{reading.skipped[-1]} (bad row {len(reading.skipped)}; skip_bad allows {spec.skip_bad})"
                ) from bad
            continue
        yield example


def _shaped(rows: Rows, spec: DatasetSpec) -> Rows:
    """Plain rows from a publisher's layout, without those that `keep` leaves out."""
    if spec.shape is not None and spec.shape not in SHAPES:
        raise RoadError(
            f"shape {quote(spec.shape)} is unknown{nearest(spec.shape, SHAPES)}; known: {', '.join(SHAPES)}"
        )
    for place, row in rows:
        if isinstance(row, Bad | Dropped):
            yield place, row
        elif any(row.get(column) != value for column, value in spec.keep.items()):
            continue
        elif spec.shape is None:
            yield place, row
        else:
            yield from _of_shape(spec.shape, place, row, spec)


def _of_shape(shape: str, place: str, row: Row, spec: DatasetSpec) -> Rows:
    inner = ""
    try:
        for inner, made in SHAPES[shape](row, spec):
            yield place + inner, made
    except Bad as bad:
        yield place, bad
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        after = f" after {inner.strip()}" if inner else ""
        yield place, Bad(f"the row has not the layout {shape}{after} ({type(error).__name__}: {plain(error)})")


def _rows(source: str, spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    """The examples of the whole source, with `drop_duplicates` those whose texts have not come before."""
    seen: set[bytes] = set()
    every = (example for piece in pieces(source, spec) for example in _examples(piece, spec, reading))
    for example in islice(every, spec.max_rows):
        if spec.drop_duplicates:
            texts = "\0".join(map(str, (example.text_a, example.text_b, *(example.choices or ())))).encode()
            key = hashlib.blake2b(texts, digest_size=16).digest()
            if key in seen:
                reading.dropped["duplicate"] = reading.dropped.get("duplicate", 0) + 1
                continue
            seen.add(key)
        yield example


def distinct(examples: Iterable[Example]) -> Iterator[Example]:
    """The examples as they come. RoadError where an id comes twice: for rows whose scores are kept by id."""
    places: dict[str, str] = {}
    for example in examples:
        if example.id in places:
            raise RoadError(
                f"{example.where}: id {quote(example.id)} also stands at {places[example.id]}; rows are scored by their "
                "ids: set columns.id to another column, or to null to number the rows"
            )
        places[example.id] = example.where
        yield example


def draw(labels: Iterable[Any], size: int, seed: int, *, stratified: bool = False) -> tuple[np.ndarray, list[Any]]:
    """Numbers, ascending, and labels of `size` rows drawn uniformly in one pass (a reservoir, algorithm R).

    All rows where there are fewer. stratified: the same number of each label as far as there are so many.
    """
    generator = random.Random(seed)
    kept: dict[Any, list[tuple[int, Any]]] = {}  # by label if stratified
    seen: Counter = Counter()
    for pair in enumerate(labels):
        group = pair[1] if stratified else None
        held = kept.setdefault(group, [])
        seen[group] += 1
        if len(held) < size:
            held.append(pair)
        elif (place := generator.randrange(seen[group])) < size:
            held[place] = pair
    if stratified:
        left, rest = size, len(kept)
        for group in sorted(kept, key=lambda group: len(kept[group])):
            kept[group] = generator.sample(kept[group], min(len(kept[group]), left // rest))
            left, rest = left - len(kept[group]), rest - 1
    drawn = sorted((pair for held in kept.values() for pair in held), key=lambda pair: pair[0])
    return np.array([number for number, _ in drawn], dtype=np.int64), [label for _, label in drawn]


def _example(row: Row, columns: Found, label: Label | None, generated_id: str, where: str) -> Example:
    id = generated_id if columns.id is None else _id(row, columns)
    text_a = _text(row, columns, "text_a")
    lacking = columns.text_b == SECOND and columns.lone and row.get(SECOND) in (None, "")
    text_b = None if lacking or columns.text_b is None else _text(row, columns, "text_b")
    answers = None if columns.answers is None else _answers(row, columns, id, text_a, text_b)
    return Example(id, text_a, text_b, label, answers, where, _choices(row, columns))


def _choices(row: Row, columns: Found) -> tuple[Choice, ...] | None:
    if not isinstance(columns.choices, list):
        return None if columns.choices is None else choices_of(_value(row, columns, "choices"))
    if lacking := [name for name in columns.choices if name not in row]:
        raise Bad(_absent(row, lacking[0], "choices"))
    return choices_of([row[name] for name in columns.choices])


def _value(row: Row, columns: Found, setting: str) -> Any:
    name = getattr(columns, setting)
    if name not in row:
        raise Bad(_absent(row, name, setting))
    if row[name] is None:
        raise Bad(f"column {quote(name)} (columns.{setting}) is null")
    return row[name]


def _absent(row: Row, name: str | int, setting: str) -> str:
    return f"no column {quote(name)} (columns.{setting}); found {quote_all(row)}{headless(row, name)}"


def _text(row: Row, columns: Found, setting: str) -> str:
    text, name = _value(row, columns, setting), getattr(columns, setting)
    if isinstance(text, list) and all(isinstance(word, str) for word in text):
        text = joined(text)
    if not isinstance(text, str):
        raise Bad(f"column {quote(name)} (columns.{setting}) is {quote(text)}; expected text, or a list of words")
    if not text:
        raise Bad(f"column {quote(name)} (columns.{setting}) is empty; expected text")
    return whole(text, f"column {quote(name)}")


def _id(row: Row, columns: Found) -> str:
    assert columns.id is not None
    value = row[columns.id] if columns.id in row else _value(row, columns, "id")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Bad(f"id is {quote(value)}; expected text or an integer, or set columns.id to null to number the rows")
    return whole(str(value), "id")


def _label(row: Row, columns: Found, separator: str | None) -> Label | None:
    if columns.label is None:
        return None
    if isinstance(columns.label, list):
        if lacking := [name for name in columns.label if name not in row]:
            raise Bad(_absent(row, lacking[0], "label"))
        return flagged(row, columns.label)
    return label_of(_value(row, columns, "label"), separator)


def _answers(row: Row, columns: Found, id: str, question: str, context: str | None) -> tuple[Answer, ...]:
    """The row's answers, each checked to stand in the context at its offset; plausible_answers are not read."""
    if context is None:
        raise Bad(f"id {quote(id)}: answers without a context; set columns.text_b")
    if not question.strip() or not context.strip():
        raise Bad(f"id {quote(id)}: the {'context' if question.strip() else 'question'} is blank")
    answers = tuple(_answer(text, start, id, context) for text, start in _pairs(_value(row, columns, "answers"), id))
    impossible = row.get("is_impossible")
    if isinstance(impossible, bool) and impossible == bool(answers):
        found = f"{len(answers)} answers" if answers else "no answer"
        raise Bad(f"id {quote(id)}: is_impossible is {str(impossible).lower()}, but the row has {found}; mend one")
    return answers


def _pairs(answers: Any, id: str) -> list[tuple[Any, Any]]:
    """(text, start) from {"text": [...], "answer_start": [...]} or from SQuAD's [{"text", "answer_start"}, ...].

    No pairs where all that stand there are empty texts at -1, as some write "no answer".
    """
    try:
        if isinstance(answers, list):
            pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
        else:
            pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
    except (KeyError, TypeError, ValueError):
        expected = '{"text": [...], "answer_start": [...]} with lists of one length'
        raise Bad(f"id {quote(id)}: answers are {quote(answers)}; expected {expected}") from None
    return [] if all(pair == ("", -1) for pair in pairs) else pairs


def _answer(text: Any, start: Any, id: str, context: str) -> Answer:
    if not isinstance(text, str) or not text.strip() or isinstance(start, bool) or not isinstance(start, int):
        raise Bad(f"id {quote(id)}: answer {quote(text)} at {quote(start)}; expected text and an integer offset")
    found = context[start : start + len(text)] if start >= 0 else ""
    if found != text:
        raise Bad(
            f"id {quote(id)}: answer {quote(text)} should stand at {start} of the context, which has {quote(found)} "
            "there; offsets count code points from 0"
        )
    return Answer(text, start)
