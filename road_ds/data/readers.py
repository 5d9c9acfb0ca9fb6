"""Raw rows -> Examples, the same way for every format: columns, labels, answers at their offsets, samples."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.config import Columns, DatasetSpec
from road_ds.data.formats import FORMATS, SUFFIXES, SURROGATE, plain, quote_all
from road_ds.data.publishers import SHAPES, Bad, Dropped, Row, Rows
from road_ds.errors import RoadError, nearest
from road_ds.strict_json import quote

# Where `columns` names no text, the first pair whose columns the row has:
TEXTS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question", "context"),
    ("question1", "question2"),
    ("text_a", "text_b"),
    ("text", None),
    ("sentence", None),
    ("text_a", None),
)
LABELS = ("label", "gold_label")


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    start: int  # in code points of text_b


@dataclass(frozen=True, slots=True)
class Example:
    id: str
    text_a: str  # span QA: the question
    text_b: str | None  # span QA: the context
    label: str | float | None  # a number only where the source has a fraction or exponent; an integer is text, "5"
    answers: tuple[Answer, ...] | None  # None: no answers column; (): unanswerable
    where: str  # "train.tsv:17", "dev.json data[0].paragraphs[3].qas[1]"


@dataclass
class Reading:
    examples: list[Example] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # one message per bad row that skip_bad allowed
    dropped: dict[str, int] = field(default_factory=dict)  # rows left out, by label of drop_labels
    negatives: int = 0  # questions made


def read(source: str, spec: DatasetSpec) -> Reading:
    """All examples of a file (or of a split, with format "hub" or "disk"), and what was left out. See `stream`."""
    reading = Reading()
    reading.examples = list(stream(source, spec, reading))
    return reading


def stream(source: str, spec: DatasetSpec, reading: Reading, chosen: np.ndarray | None = None) -> Iterator[Example]:
    """The examples of a file or split one by one; what is left out is noted in `reading`, whose examples stay empty.

    chosen: numbers of the rows to take, ascending; by default those of `choose`. Rows without an id column are called
    "<file stem>-<row>", counted from 0 over all rows of the source.
    RoadError: no such file or format, a bad row beyond `skip_bad`, an id that comes twice, or no rows left.
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
            f"{_origin(source, spec)}: the data set is empty ({left_out}); give a source with at least one row"
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


def _origin(source: str, spec: DatasetSpec) -> str:
    return f"{spec.path} {source}" if spec.format in ("hub", "disk") else source


def _examples(source: str, spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    format, origin = _format(source, spec), _origin(source, spec)
    name = origin if format == "hub" else Path(origin).name
    columns: Columns | None = None  # settled by the first row that has the columns
    places: dict[str, str] = {}  # id -> where it stands; ids made here are unique
    taken = 0
    for number, (place, row) in enumerate(_shaped(FORMATS[format](source, spec), spec)):
        if spec.max_rows is not None and taken >= spec.max_rows:
            break
        if isinstance(row, Dropped):
            reading.dropped[row] = reading.dropped.get(row, 0) + 1
            continue
        try:
            if isinstance(row, Bad):
                raise row
            columns = columns or _resolve(spec.columns, row)
            label = None if columns.label is None else _label(_value(row, columns, "label"))
            if label is not None and str(label) in spec.drop_labels:
                reading.dropped[str(label)] = reading.dropped.get(str(label), 0) + 1
                continue
            example = _example(row, columns, label, f"{Path(source).stem}-{number}", name + place)
        except Bad as bad:
            reading.skipped.append(f"{origin}{place}: {bad}")
            if len(reading.skipped) > spec.skip_bad:
                raise RoadError(
                    f"{reading.skipped[-1]} (bad row {len(reading.skipped)}; skip_bad allows {spec.skip_bad})"
                ) from bad
            continue
        if columns.id is not None:
            if example.id in places:
                raise RoadError(
                    f"{origin}{place}: id {quote(example.id)} also stands at {places[example.id]}; "
                    "ids must be unique, or set columns.id to another column"
                )
            places[example.id] = example.where
        taken += 1
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
    for example in _examples(source, spec, reading):
        if spec.drop_duplicates:
            texts = f"{example.text_a}\0{example.text_b}".encode()
            key = hashlib.blake2b(texts, digest_size=16).digest()
            if key in seen:
                reading.dropped["duplicate"] = reading.dropped.get("duplicate", 0) + 1
                continue
            seen.add(key)
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


def _format(source: str, spec: DatasetSpec) -> str:
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    format = spec.format or SUFFIXES.get(suffix)
    if format not in FORMATS:
        what = f"format {quote(spec.format)}" if spec.format else f"{source}: file suffix {quote(suffix)}"
        raise RoadError(f"{what} is unknown; set format to one of {', '.join(FORMATS)}")
    if format in ("hub", "disk"):
        if not spec.path:
            raise RoadError(f'format "{format}" needs path: ' + ("a hub name" if format == "hub" else "a folder"))
    elif not Path(source).is_file():
        kind = "is a folder" if Path(source).is_dir() else "does not exist"
        raise RoadError(f"{source} {kind}; expected a file (looked at {Path(source).absolute()})")
    return format


def _resolve(given: Columns, row: Row) -> Columns:
    """The columns to read: those given, and where none is given those with well-known names that the row has."""
    text_a, text_b = given.text_a, given.text_b
    if text_a is None:
        known = (pair for pair in TEXTS if pair[0] in row and (pair[1] is None or pair[1] in row))
        text_a, partner = next(known, (None, None))
        text_b = partner if text_b is None else text_b
        if text_a is None:
            half = next((f" ({a!r} goes with {b!r}, which is not there)" for a, b in TEXTS if a in row), "")
            raise Bad(
                f"no column with a well-known name for text{half}; set columns.text_a to one of {quote_all(row)}"
                f"{', and text_b for the other text' if half else ''}{_headless(row)}"
            )
    first_label = next((name for name in LABELS if name in row), None)
    return Columns(
        id=given.id if given.id is not None else "id" if "id" in row else None,
        text_a=text_a,
        text_b=text_b,
        label=given.label if given.label is not None else first_label,
        answers=given.answers if given.answers is not None else "answers" if "answers" in row else None,
    )


def _example(row: Row, columns: Columns, label: str | float | None, generated_id: str, where: str) -> Example:
    id = generated_id if columns.id is None else _id(_value(row, columns, "id"))
    text_a = _text(row, columns, "text_a")
    text_b = None if columns.text_b is None else _text(row, columns, "text_b")
    answers = None if columns.answers is None else _answers(row, columns, id, text_a, text_b)
    return Example(id, text_a, text_b, label, answers, where)


def _value(row: Row, columns: Columns, setting: str) -> Any:
    name = getattr(columns, setting)
    if name not in row:
        raise Bad(f"no column {quote(name)} (columns.{setting}); found {quote_all(row)}{_headless(row, name)}")
    if row[name] is None:
        raise Bad(f"column {quote(name)} (columns.{setting}) is null")
    return row[name]


def _headless(row: Row, wanted: str | int = "") -> str:
    """What to set where the names of the columns look like the first row of a table without a header."""
    names = [name for name in row if isinstance(name, str)]
    like_values = any(len(name.split()) > 3 or name[:1].isdigit() or name in map(str, row.values()) for name in names)
    if names and (isinstance(wanted, int) or like_values):
        return '; if these are a row, set "header": false and give columns by position, {"text_a": 0, ...}'
    return ""


def _text(row: Row, columns: Columns, setting: str) -> str:
    text, name = _value(row, columns, setting), getattr(columns, setting)
    if not isinstance(text, str):
        raise Bad(f"column {quote(name)} (columns.{setting}) is {quote(text)}; expected text")
    if not text:
        raise Bad(f"column {quote(name)} (columns.{setting}) is empty; expected text")
    if found := SURROGATE.search(text):
        raise Bad(f"column {quote(name)} has {quote(found[0])} at {found.start()}, half a character; mend the text")
    return text


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Bad(f"id is {quote(value)}; expected text or an integer")
    return str(value)


def _label(value: Any) -> str | float:
    """Text as it is, true, false and integers as JSON writes them, and other numbers as float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    if isinstance(value, str | int) and value != "":
        return str(value)
    raise Bad(f"label is {quote(value)}; expected text or a finite number")


def _answers(row: Row, columns: Columns, id: str, question: str, context: str | None) -> tuple[Answer, ...]:
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
    """(text, start) from {"text": [...], "answer_start": [...]} or from SQuAD's [{"text", "answer_start"}, ...]."""
    try:
        if isinstance(answers, list):
            return [(answer["text"], answer["answer_start"]) for answer in answers]
        return list(zip(answers["text"], answers["answer_start"], strict=True))
    except (KeyError, TypeError, ValueError):
        expected = '{"text": [...], "answer_start": [...]} with lists of one length'
        raise Bad(f"id {quote(id)}: answers are {quote(answers)}; expected {expected}") from None


def _answer(text: Any, start: Any, id: str, context: str) -> Answer:
    if not isinstance(text, str) or not text or isinstance(start, bool) or not isinstance(start, int):
        raise Bad(f"id {quote(id)}: answer {quote(text)} at {quote(start)}; expected text and an integer offset")
    found = context[start : start + len(text)] if start >= 0 else ""
    if found != text:
        raise Bad(
            f"id {quote(id)}: answer {quote(text)} should stand at {start} of the context, which has {quote(found)} "
            "there; offsets count code points from 0"
        )
    return Answer(text, start)
