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
from road_ds.data.files import Piece, origin_of, pieces
from road_ds.data.formats import FORMATS, plain, quote_all
from road_ds.data.labels import Label, flagged, has_any, label_of, whole
from road_ds.data.publishers import SHAPES, Bad, Dropped, Row, Rows

# Where `columns` names no text, the first pair that the row has. A text of LONE may stand without its second.
TEXTS = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("question", "context"),
    ("question", "sentence"),
    ("question", "passage"),  # BoolQ
    ("question1", "question2"),
    ("context", "hypothesis"),  # ANLI
    ("sentence_A", "sentence_B"),  # SICK
    ("#1 String", "#2 String"),  # MRPC
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", None),
    ("sentence", None),
    ("review", None),  # IMDB
)
LONE = ("text_a", "text", "sentence", "review")
SECOND = "text_b"  # always the second text where `columns` names no other
LABELS = ("label", "gold_label", "labels")
# Labels of public sets, where a row has one of them and none of the above: BoolQ's, STS-B's, MRPC's, QQP's, IMDB's, Yelp's, ...
RARER = (
    *("answer", "score", "Quality", "is_duplicate", "sentiment", "stars", "rating", "intent", "category", "class"),
    *("relatedness_score", "entailment_judgment"),
)


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


@dataclass(frozen=True, slots=True)
class Found:
    """The columns of rows with some keys, by what they hold; lone: a row may lack its second text."""

    id: str | int | None
    text_a: str | int | None
    text_b: str | int | None
    label: str | int | list[str | int] | None
    answers: str | int | None
    lone: bool


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
                columns, names = _find(spec.columns, row, columns), tuple(row)
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
            texts = f"{example.text_a}\0{example.text_b}".encode()
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


def _find(given: Columns, row: Row, before: Found | None) -> Found:
    """The columns to read: those given, else those of the rows before, else those with well-known names in the row.

    Bad where the row could have its texts or its label elsewhere than the rows before: which is meant is not guessed.
    """
    pairs = [(a, b) for a, b in TEXTS if a in row and (b in row or a in LONE)]
    text_a = given.text_a
    if text_a is None:
        text_a = _column("text_a", [a for a, _ in pairs], row, before)
        if text_a is None:
            half = next((f" ({a!r} goes with {b!r}, which is not there)" for a, b in TEXTS if a in row), "")
            raise Bad(
                f"no column with a well-known name for text{half}; set columns.text_a to one of {quote_all(row)}"
                f"{', and text_b for the other text' if half else ''}{_headless(row)}"
            )
    partners = [b for a, b in pairs if a == text_a and given.text_a is None]
    seconds = [b for b in dict.fromkeys([*partners, SECOND]) if b in row and b != text_a]
    if len(seconds) > 1 and "text_b" not in given.model_fields_set:
        raise Bad(f"columns.text_b could be {' or '.join(map(quote, seconds))}: set it")

    def column(role: str, known: Iterable[str | None], before: Found | None = before) -> str | int | None:
        if role in given.model_fields_set:  # null too: there is none
            return getattr(given, role)
        return _column(role, known, row, before)

    return Found(
        id=column("id", ("id",), None),  # a row without it is numbered
        text_a=text_a,
        text_b=column("text_b", seconds),
        label=column("label", _labels(given, row)),
        answers=column("answers", ("answers",)),
        lone="text_b" not in given.model_fields_set,
    )


def _labels(given: Columns, row: Row) -> tuple[str, ...]:
    """The names under which a row's label may stand. Bad where two of the rarer ones do; beside answers they are none."""
    found = tuple(name for name in RARER if name in row)
    if "answers" in row or any(name in row for name in LABELS):
        return LABELS
    if len(found) > 1 and "label" not in given.model_fields_set:
        raise Bad(f"columns.label could be {' or '.join(map(quote, found))}: set it")
    return found


def _column(role: str, known: Iterable[str | None], row: Row, before: Found | None) -> str | int | None:
    settled = None if before is None else getattr(before, role)
    found = next((name for name in known if name in row), None)
    if settled is None or found is None or found == settled:
        return found if settled is None else settled
    if settled in row:
        both = f"{quote(settled)}, as in the rows before, or {quote(found)}"
        raise Bad(f"columns.{role} could be {both}: set it")
    return settled


def _example(row: Row, columns: Found, label: Label | None, generated_id: str, where: str) -> Example:
    id = generated_id if columns.id is None else _id(row, columns)
    text_a = _text(row, columns, "text_a")
    lacking = columns.text_b == SECOND and columns.lone and row.get(SECOND) in (None, "")
    text_b = None if lacking or columns.text_b is None else _text(row, columns, "text_b")
    answers = None if columns.answers is None else _answers(row, columns, id, text_a, text_b)
    return Example(id, text_a, text_b, label, answers, where)


def _value(row: Row, columns: Found, setting: str) -> Any:
    name = getattr(columns, setting)
    if name not in row:
        raise Bad(_absent(row, name, setting))
    if row[name] is None:
        raise Bad(f"column {quote(name)} (columns.{setting}) is null")
    return row[name]


def _absent(row: Row, name: str | int, setting: str) -> str:
    return f"no column {quote(name)} (columns.{setting}); found {quote_all(row)}{_headless(row, name)}"


def _headless(row: Row, wanted: str | int = "") -> str:
    """What to set where the names of the columns look like the first row of a table without a header."""
    names = [name for name in row if isinstance(name, str)]
    like_values = any(len(name.split()) > 3 or name[:1].isdigit() or name in map(str, row.values()) for name in names)
    if names and (isinstance(wanted, int) or like_values):
        return '; if these are a row, set "header": false and give columns by position, {"text_a": 0, ...}'
    return ""


def _text(row: Row, columns: Found, setting: str) -> str:
    text, name = _value(row, columns, setting), getattr(columns, setting)
    if not isinstance(text, str):
        raise Bad(f"column {quote(name)} (columns.{setting}) is {quote(text)}; expected text")
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
