"""Files and Hugging Face data sets -> Examples. READERS has one small function per format.

A reader yields (place, row): where the row stands (":17", " data[0].paragraphs[3].qas[1]") and its values by column,
or the Bad that says why it cannot be read. `read` turns rows into Examples, the same way for every format.
"""

import csv
import gzip
import hashlib
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from road_ds.config import Columns, DatasetSpec
from road_ds.errors import RoadError, nearest
from road_ds.publishers import SHAPES, Bad, Dropped, Row, Rows
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


def read(source: str, spec: DatasetSpec) -> Reading:
    """All examples of a file (or of a split, with format "hub" or "disk"), and what was left out. See `stream`."""
    reading = Reading()
    reading.examples = list(stream(source, spec, reading))
    return reading


def stream(source: str, spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    """The examples of a file or split one by one; what is left out is noted in `reading`, whose examples stay empty.

    Rows without an id column are called "<file stem>-<row>", counted from 0 over all rows of the source. With `sample`
    only the rows drawn are held in memory, and they come in the source's order.
    RoadError: no such file or format, a bad row beyond `skip_bad`, an id that comes twice, or no rows left.
    """
    rows: Iterable[Example] = _unique(_examples(source, spec, reading), spec, reading)
    if spec.sample is not None:
        rows = reservoir(rows, spec.sample, spec.sample_seed, stratified=spec.stratified)
    empty = True
    for example in rows:
        empty = False
        yield example
        if spec.both_orders and example.text_b is not None:
            yield replace(example, id=f"{example.id}-swapped", text_a=example.text_b, text_b=example.text_a)
    if empty:
        left_out = f"{len(reading.skipped)} bad rows skipped, rows dropped by label: {reading.dropped or 'none'}"
        raise RoadError(
            f"{_origin(source, spec)}: the data set is empty ({left_out}); give a source with at least one row"
        )


def _origin(source: str, spec: DatasetSpec) -> str:
    return f"{spec.path} {source}" if spec.format in ("hub", "disk") else source


def _examples(source: str, spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    format, origin = _format(source, spec), _origin(source, spec)
    name = origin if format == "hub" else Path(origin).name
    columns: Columns | None = None  # settled by the first row that has the columns
    places: dict[str, str] = {}  # id -> where it stands; ids made here are unique
    taken = 0
    for number, (place, row) in enumerate(_shaped(READERS[format](source, spec), spec)):
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
        for inner, plain in SHAPES[shape](row, spec):
            yield place + inner, plain
    except Bad as bad:
        yield place, bad
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        after = f" after {inner.strip()}" if inner else ""
        yield place, Bad(f"the row has not the layout {shape}{after} ({type(error).__name__}: {_plain(error)})")


def _unique(examples: Iterator[Example], spec: DatasetSpec, reading: Reading) -> Iterator[Example]:
    """The examples, with `drop_duplicates` those whose texts have not come before."""
    seen: set[bytes] = set()
    for example in examples:
        if spec.drop_duplicates:
            texts = f"{example.text_a}\0{example.text_b}".encode()
            key = hashlib.blake2b(texts, digest_size=16).digest()
            if key in seen:
                reading.dropped["duplicate"] = reading.dropped.get("duplicate", 0) + 1
                continue
            seen.add(key)
        yield example


def reservoir(examples: Iterable[Example], size: int, seed: int, *, stratified: bool = False) -> list[Example]:
    """`size` examples drawn uniformly without replacement in one pass, in their own order; all where there are fewer.

    stratified: the same number of each label as far as there are so many; labels are then drawn apart (algorithm R).
    """
    draw = random.Random(seed)
    kept: dict[Any, list[tuple[int, Example]]] = {}
    seen: Counter = Counter()
    for number, example in enumerate(examples):
        label = example.label if stratified else None
        held = kept.setdefault(label, [])
        seen[label] += 1
        if len(held) < size:
            held.append((number, example))
        elif (place := draw.randrange(seen[label])) < size:
            held[place] = (number, example)
    if stratified:
        share, left, rest = {}, size, len(kept)
        for label in sorted(kept, key=lambda label: len(kept[label])):
            share[label] = min(len(kept[label]), left // rest)
            left, rest = left - share[label], rest - 1
        kept = {label: draw.sample(held, share[label]) for label, held in kept.items()}
    return [
        example for _, example in sorted((pair for held in kept.values() for pair in held), key=lambda pair: pair[0])
    ]


def _format(source: str, spec: DatasetSpec) -> str:
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
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


def _items_of_list(source: str, spec: DatasetSpec) -> Rows:
    """The entries of the one list of a JSON file, "data" or "Data"."""
    document = load_json(source)
    key = "Data" if isinstance(document, dict) and "Data" in document else "data"
    for i, item in enumerate(_items(source, "", document, key)):
        yield f" {key}[{i}]", item if isinstance(item, dict) else Bad(f"{quote(item)} is not an object")


def _fields(source: str, spec: DatasetSpec) -> Rows:
    """Tab-separated lines of any number of fields, as {"fields": [...]}; blank lines are skipped."""
    for number, fields in _unquoted(source, "\t"):
        bad = fields if isinstance(fields, Bad) else _bad_line("".join(fields))
        yield f":{number}", bad or {"fields": fields}


def _qasrl_gs(source: str, spec: DatasetSpec) -> Rows:
    """The rows of gold.csv with the tokens of sentences.csv beside it, joined by qasrl_id."""
    quoted = spec.model_copy(update={"quoting": True, "header": True})
    sentences = str(Path(source).with_name("sentences.csv"))
    if not Path(sentences).is_file():
        raise RoadError(f"{sentences} does not exist; QA-SRL-GS keeps its sentences there, bring it beside {source}")
    tokens: dict[Any, Any] = {}
    for place, row in _csv(sentences, quoted):
        if isinstance(row, Bad | Dropped) or "qasrl_id" not in row or "tokens" not in row:
            raise RoadError(f"{sentences}{place}: {row}; expected the columns qasrl_id and tokens")
        tokens[row["qasrl_id"]] = row["tokens"]
    for place, row in _csv(source, quoted):
        if isinstance(row, Bad | Dropped):
            yield place, row
        elif row.get("qasrl_id") not in tokens:
            yield place, Bad(f"qasrl_id {quote(row.get('qasrl_id'))} is not in {sentences}")
        else:
            yield place, {**row, "tokens": tokens[row["qasrl_id"]]}


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
    opener: Any = gzip.open if source.endswith(".gz") else open
    try:
        with opener(source, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            while line := file.readline(LIMIT + 1):
                yield line
                while len(line) > LIMIT and not line.endswith("\n"):
                    line = file.readline(LIMIT + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RoadError(f"{source}: not a whole gzip file ({error}); fetch it again") from None


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
        if spec.revision is None:
            dataset = load_dataset(name, spec.config, split=source)
        else:  # a branch keeps configurations as folders
            dataset = load_dataset(name, data_dir=spec.config, revision=spec.revision, split=source)
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
    "items": _items_of_list,
    "fields": _fields,
    "qasrl_gs": _qasrl_gs,
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
