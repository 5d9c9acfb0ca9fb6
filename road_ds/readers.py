"""Files and Hugging Face data sets -> Examples. READERS has one small function per format.

A reader yields (place, row): where the row stands (":17", " data[0].paragraphs[3].qas[1]") and its values by column,
or the Bad that says why it cannot be read. `read` turns rows into Examples, the same way for every format.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from road_ds.config import Columns, DatasetSpec
from road_ds.errors import RoadError
from road_ds.strict_json import load_json, parse_json, quote

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
LIMIT = 16 * 2**20  # characters a line, or a quoted field
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)?")
SURROGATE = re.compile("[\ud800-\udfff]")  # what surrogateescape makes of bytes that are not UTF-8


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


class Bad(Exception):
    """Why one row cannot be used; `read` adds the place and applies skip_bad."""


Row = Mapping[str | int, Any]
Rows = Iterator[tuple[str, Row | Bad]]


def read(source: str, spec: DatasetSpec) -> Reading:
    """All examples of a file (or of a split, with format "hub" or "disk"), and what was left out.

    Rows without an id column are called "<file stem>-<row>", counted from 0 over all rows of the source.
    RoadError: no such file or format, a bad row beyond `skip_bad`, an id that comes twice, or no rows left.
    """
    format = _format(source, spec)
    origin = f"{spec.path} {source}" if format in ("hub", "disk") else source
    name = origin if format == "hub" else Path(origin).name
    reading = Reading()
    columns: Columns | None = None  # settled by the first row that has the columns
    places: dict[str, str] = {}  # id -> where it stands
    for number, (place, row) in enumerate(READERS[format](source, spec)):
        if spec.max_rows is not None and len(reading.examples) >= spec.max_rows:
            break
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
        if example.id in places:
            raise RoadError(
                f"{origin}{place}: id {quote(example.id)} also stands at {places[example.id]}; "
                "ids must be unique, or set columns.id to another column"
            )
        places[example.id] = example.where
        reading.examples.append(example)
    if not reading.examples:
        left_out = f"{len(reading.skipped)} bad rows skipped, rows dropped by label: {reading.dropped or 'none'}"
        raise RoadError(f"{origin}: the data set is empty ({left_out}); give a source with at least one row")
    return reading


def _format(source: str, spec: DatasetSpec) -> str:
    suffix = Path(source).suffix.lower()
    format = spec.format or SUFFIXES.get(suffix)
    if format not in READERS:
        what = f"format {quote(spec.format)}" if spec.format else f"{source}: file suffix {quote(suffix)}"
        raise RoadError(f"{what} is unknown; set format to one of {', '.join(READERS)}")
    if format in ("hub", "disk"):
        if not spec.path:
            raise RoadError(f'format "{format}" needs path: ' + ("a hub name" if format == "hub" else "a folder"))
    elif not Path(source).is_file():
        kind = "is a folder" if Path(source).is_dir() else "does not exist"
        raise RoadError(f"{source} {kind}; expected a file (looked at {Path(source).absolute()})")
    return format


# ----------------------------------------------------------------------------------- one function a format


def _squad(source: str, spec: DatasetSpec) -> Rows:
    for i, article in enumerate(_items(source, "", load_json(source), "data")):
        for j, paragraph in enumerate(_items(source, f" data[{i}]", article, "paragraphs")):
            for k, qa in enumerate(_items(source, f" data[{i}].paragraphs[{j}]", paragraph, "qas")):
                place = f" data[{i}].paragraphs[{j}].qas[{k}]"
                context = {key: paragraph[key] for key in ("context",) if key in paragraph}
                yield place, qa | context if isinstance(qa, dict) else Bad(f"{quote(qa)} is not an object")


def _items(source: str, place: str, value: Any, key: str) -> list:
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise RoadError(
            f'{source}{place}: no list "{key}"; format "squad" expects {{"data": [{{"paragraphs": '
            f'[{{"context": ..., "qas": [...]}}]}}]}}, "jsonl" one object a line'
        )
    return value[key]


def _jsonl(source: str, spec: DatasetSpec) -> Rows:
    for number, line in enumerate(_lines(source), 1):
        if line.strip():
            yield f":{number}", _json_row(line)


def _json_row(line: str) -> Row | Bad:
    if bad := _bad_line(line):
        return bad
    try:
        row = parse_json(line)
    except JSONDecodeError as error:
        return Bad(f"malformed JSON at column {error.colno}: {error.msg}")
    except ValueError as error:
        return Bad(str(error))
    return row if isinstance(row, dict) else Bad(f'{quote(row)} is not an object; expected {{"column": value, ...}}')


def _tsv(source: str, spec: DatasetSpec) -> Rows:
    return _delimited(source, spec, "\t", quoting=bool(spec.quoting))


def _csv(source: str, spec: DatasetSpec) -> Rows:
    return _delimited(source, spec, ",", quoting=spec.quoting is not False)


def _delimited(source: str, spec: DatasetSpec, delimiter: str, quoting: bool) -> Rows:
    names: list[str] | list[int] = []
    hint = "set quoting false if quotes are literal" if quoting else "set quoting true if quotes enclose fields"
    for number, record in _quoted(source, delimiter) if quoting else _unquoted(source, delimiter):
        fields = [] if isinstance(record, Bad) else record
        bad = Bad(f"{record}; {hint}") if isinstance(record, Bad) else _bad_line("".join(fields))
        if names or not spec.header:
            names = names or list(range(len(fields)))
            if not bad and len(fields) != len(names):
                bad = Bad(f"found {len(fields)} fields, expected {len(names)} as in the first line; {hint}")
            yield f":{number}", bad or dict(zip(names, fields, strict=True))
        elif bad:
            raise RoadError(f"{source}:{number}: header: {bad}")
        else:
            names = fields
            if twice := [name for name, count in Counter(fields).items() if count > 1]:
                raise RoadError(f"{source}:{number}: the header names column {quote(twice[0])} twice; rename one")


def _unquoted(source: str, delimiter: str) -> Iterator[tuple[int, list[str] | Bad]]:
    """(line, fields) of the lines that are not blank; quotes are characters like any other."""
    for number, line in enumerate(_lines(source), 1):
        if text := line.removesuffix("\n").removesuffix("\r"):
            yield number, text.split(delimiter)


def _quoted(source: str, delimiter: str) -> Iterator[tuple[int, list[str] | Bad]]:
    """(line where the record starts, fields or fault) of the records that are not blank."""
    csv.field_size_limit(max(csv.field_size_limit(), LIMIT))  # the module's own 131,072 refuses a 1 MB row
    # strict: a stray quote is an error instead of a field that swallows the rows after it
    reader = csv.reader(_lines(source), delimiter=delimiter, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            fields: list[str] | Bad | None = next(reader, None)
        except csv.Error as error:
            fields = Bad(f"malformed quoting or field: {error}")
        if fields is None:
            return
        if fields:
            yield number, fields


def _lines(source: str) -> Iterator[str]:
    """The lines, split at newline only, without a byte-order mark; a line beyond LIMIT comes cut at LIMIT + 1.

    Bytes that are not UTF-8 come as lone surrogates, so that one bad line does not end the reading.
    """
    with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        while line := file.readline(LIMIT + 1):
            yield line
            while len(line) > LIMIT and not line.endswith("\n"):
                line = file.readline(LIMIT + 1)


def _hub(source: str, spec: DatasetSpec) -> Rows:
    # imported here, as it takes seconds: only those who use it wait
    from datasets import load_dataset
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as FILE_LOADERS

    name = spec.path or ""
    if not NAME.fullmatch(name) or name in FILE_LOADERS:  # "json", "pandas": would read files of the working folder
        raise RoadError(f"hub data set {quote(name)}: expected a name like 'org/name', or {LOCAL}")
    if Path(name).exists():  # load_dataset would silently prefer it to the hub
        raise RoadError(f"hub data set {quote(name)} is also a local path here; rename that, or {LOCAL}")
    try:
        dataset = load_dataset(name, spec.config, split=source)
    except Exception as error:
        where = f"hub data set {quote(name)}" + (f", configuration {quote(spec.config)}" if spec.config else "")
        raise RoadError(f"{where}, split {quote(source)}: {_hub_fault(error)}. Without the hub: {LOCAL}") from error
    yield from _table(dataset)


LOCAL = 'use a local folder (save_to_disk, then format "disk" with path set to it) or a JSONL, TSV or CSV file'


def _hub_fault(error: BaseException) -> str:
    """What went wrong at the hub and what to change, from the exceptions of datasets, huggingface_hub and httpx."""
    import httpx
    from datasets import config
    from datasets.exceptions import DatasetNotFoundError

    chain: list[BaseException] = [error]  # datasets wraps the client's exceptions in its own, more general ones
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)

    if isinstance(error, DatasetNotFoundError):
        if "is a gated dataset" in str(error):  # datasets drops the client's GatedRepoError and leaves this sentence
            return "the hub says that it is gated; ask for access on its page and log in (hf auth login)"
        return "the hub has no such data set, or it is private; check the name, or log in (hf auth login)"
    if any(isinstance(cause, (ConnectionError, httpx.TransportError)) for cause in chain):
        if config.HF_HUB_OFFLINE:
            return "offline mode is on (HF_HUB_OFFLINE) and the cache does not have it; turn it off"
        return "the hub cannot be reached; check the network and HF_ENDPOINT"
    return f"{type(error).__name__}: {_plain(error)}"  # such as an unknown split or configuration, with those there are


def _plain(error: BaseException) -> str:
    """Another library's message on one line, shortened, control characters escaped."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:300]).rstrip(".")


def _disk(source: str, spec: DatasetSpec) -> Rows:
    from datasets import Dataset, load_from_disk

    if not Path(spec.path or "").is_dir():
        raise RoadError(f"{spec.path}: no such folder; expected one that save_to_disk of datasets wrote")
    try:
        loaded = load_from_disk(spec.path)
    except Exception as error:
        raise RoadError(f"{spec.path}: not readable as a save_to_disk folder: {_plain(error)}") from error
    # one split alone answers to its own name only, so that train and dev cannot become the same rows
    splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else dict(loaded)
    if source not in splits:
        raise RoadError(f"{spec.path}: no split {quote(source)}; the folder has {quote_all(splits)}")
    yield from _table(splits[source])


def _table(dataset) -> Rows:
    from datasets import ClassLabel

    names = {column: kind.names for column, kind in dataset.features.items() if isinstance(kind, ClassLabel)}
    for number, row in enumerate(dataset.with_format(None)):
        for column, known in names.items():
            if row[column] is not None and 0 <= row[column] < len(known):  # -1 (no label) stays a number
                row[column] = known[row[column]]
        yield f"[{number}]", row


READERS: dict[str, Callable[[str, DatasetSpec], Rows]] = {
    "squad": _squad,
    "jsonl": _jsonl,
    "tsv": _tsv,
    "csv": _csv,
    "hub": _hub,
    "disk": _disk,
}
SUFFIXES = {".json": "squad", ".jsonl": "jsonl", ".tsv": "tsv", ".csv": "csv"}


# ---------------------------------------------------------------------------------------- row -> Example


def _resolve(given: Columns, row: Row) -> Columns:
    """The columns to read: those given, and where none is given those with well-known names that the row has."""
    text_a, text_b = given.text_a, given.text_b
    if text_a is None:
        known = (pair for pair in TEXTS if pair[0] in row and (pair[1] is None or pair[1] in row))
        text_a, partner = next(known, (None, None))
        text_b = partner if text_b is None else text_b
        if text_a is None:
            raise Bad(f"no column with a well-known name for text; set columns.text_a to one of {quote_all(row)}")
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
        raise Bad(f"no column {quote(name)} (columns.{setting}); found {quote_all(row)}")
    if row[name] is None:
        raise Bad(f"column {quote(name)} (columns.{setting}) is null")
    return row[name]


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


def _bad_line(line: str) -> Bad | None:
    """What is wrong with a line's characters, if anything."""
    if len(line) > LIMIT:
        return Bad(f"longer than {LIMIT:,} characters")
    if found := SURROGATE.search(line):
        near = quote(line[max(0, found.start() - 20) : found.start() + 20])
        return Bad(f"byte 0x{ord(found[0]) - 0xDC00:02X} in {near} is not UTF-8; save the file as UTF-8")
    return None


def quote_all(names: Mapping) -> str:
    """The column names, shortened, for an error message."""
    shown = ", ".join(quote(name) for name in list(names)[:20])
    return f"{shown}, ... ({len(names)} columns)" if len(names) > 20 else shown or "no columns"
