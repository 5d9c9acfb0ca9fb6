"""Files and Hugging Face data sets -> raw rows. FORMATS has one small function per format.

A format yields (place, row): where the row stands (":17", " data[0].paragraphs[3].qas[1]") and its values by column, or
the Bad that says why it cannot be read.
"""

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from road_ds.common.errors import RoadError
from road_ds.common.strict_json import SURROGATE, load_json, parse_json, quote
from road_ds.config import catalog
from road_ds.config.road import DatasetSpec
from road_ds.data.conll import sentences, universal
from road_ds.data.publishers import Bad, Dropped, Row, Rows

LIMIT = 16 * 2**20  # characters a line, or a quoted field
LINE, DOCUMENT = (
    2**19,
    2**20,
)  # of text without columns: characters a line, and where a document goes on in the next row
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)?")


def _squad(source: str, spec: DatasetSpec) -> Rows:
    """SQuAD's questions, of articles and paragraphs; an entry of "data" without paragraphs is a row itself."""
    for i, article in enumerate(_items(source, "", load_json(source), "data")):
        if isinstance(article, dict) and article and "paragraphs" not in article:
            yield f" data[{i}]", article
            continue
        for j, paragraph in enumerate(_items(source, f" data[{i}]", article, "paragraphs")):
            for k, qa in enumerate(_items(source, f" data[{i}].paragraphs[{j}]", paragraph, "qas")):
                place = f" data[{i}].paragraphs[{j}].qas[{k}]"
                context = {key: paragraph[key] for key in ("context",) if key in paragraph}
                yield place, qa | context if isinstance(qa, dict) else Bad(f"{quote(qa)} is not an object")


def _items(source: str, place: str, value: Any, key: str) -> list:
    if not isinstance(value, dict) or not isinstance(value.get(key), list):
        raise RoadError(
            f'{source}{place}: no list "{key}"; format "squad" expects {{"data": [{{"paragraphs": '
            f'[{{"context": ..., "qas": [...]}}]}}]}} or {{"data": [{{"question": ..., "context": ...}}]}}, '
            '"jsonl" one object a line'
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
        bad = fields if isinstance(fields, Bad) else bad_line("".join(fields))
        yield f":{number}", bad or {"fields": fields}


def _qasrl_gs(source: str, spec: DatasetSpec) -> Rows:
    """The rows of a file of gold questions with the tokens of their sentences, which are in another, joined by qasrl_id."""
    quoted = spec.model_copy(update={"quoting": True, "header": True})
    sentences = _sentences_of(Path(source))
    if not Path(sentences).is_file():
        raise RoadError(f"{sentences} does not exist; QA-SRL-GS keeps the sentences of {source} there, bring it")
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


def _sentences_of(gold: Path) -> str:
    """gold/X.gold.csv -> sentences/X.full.csv, as in the publisher's folder; gold.csv -> sentences.csv beside it."""
    name = gold.name.removesuffix("gold.csv")
    return str(gold.parent.parent / "sentences" / f"{name}full.csv" if name else gold.with_name("sentences.csv"))


def _text_lines(source: str, spec: DatasetSpec) -> Rows:
    """Lines that are a text each, as {"text": ...}; blank lines are skipped."""
    for number, line in enumerate(_lines(source), 1):
        if text := line.strip():
            yield f":{number}", _no_text(text) or {"text": text}


def _jsonl(source: str, spec: DatasetSpec) -> Rows:
    for number, line in enumerate(_lines(source), 1):
        if line.strip():
            yield f":{number}", _json_row(line)


def is_json_lines(source: str) -> bool:
    """Whether the first line of a file is a row, and not (the start of) one document."""
    row = _json_row(next((line for line in _lines(source) if line.strip()), ""))
    return isinstance(row, dict) and not isinstance(row.get("data"), list)


def _json_row(line: str) -> Row | Bad:
    if bad := bad_line(line):
        return bad
    try:
        row = parse_json(line)
    except JSONDecodeError as error:
        return Bad(f"malformed JSON at column {error.colno}: {error.msg}")
    except ValueError as error:
        return Bad(str(error))
    return row if isinstance(row, dict) else Bad(f'{quote(row)} is not an object; expected {{"column": value, ...}}')


def _conll(source: str, spec: DatasetSpec) -> Rows:
    """Sentences of words with tags."""
    return sentences(_numbered(source))


def _conllu(source: str, spec: DatasetSpec) -> Rows:
    """Sentences of Universal Dependencies."""
    return universal(_numbered(source))


def _numbered(source: str) -> Iterator[tuple[int, str | Bad]]:
    return ((number, bad_line(line) or line) for number, line in enumerate(_lines(source), 1))


def _text(source: str, spec: DatasetSpec) -> Rows:
    """Documents with blank lines between them."""
    return _documents(source, apart=True)


def _document(source: str, spec: DatasetSpec) -> Rows:
    """The whole file as one document; its blank lines say nothing."""
    return _documents(source, apart=False)


def _documents(source: str, apart: bool) -> Rows:
    """{"text": lines} of each document, from the line where it begins; one of more than DOCUMENT characters in parts.

    apart: a blank line ends a document. A line that cannot be text makes its document a bad row.
    """
    lines: list[str] = []
    begun, size, bad = 0, 0, False
    for number, line in enumerate(_lines(source), 1):
        text = line.strip()
        if text and not bad:
            if fault := _no_text(line):
                bad = True
                yield f":{number}", fault
                lines, size = [], 0
                continue
            begun = begun if lines else number
            lines.append(text)
            size += len(text)
        ended = not text and apart
        if lines and (ended or size >= DOCUMENT):
            yield f":{begun}", {"text": "\n".join(lines)}
            lines, size = [], 0
        bad = bad and not ended
    if lines:
        yield f":{begun}", {"text": "\n".join(lines)}


def _no_text(line: str) -> Bad | None:
    """Why a line is no line of text, if it is none."""
    if len(line) > LINE:
        return Bad(f"a line of more than {LINE:,} characters is hardly text; expected lines that end in a newline")
    if "\0" in line:
        return Bad("holds NUL bytes; expected text in UTF-8, not a binary file and not UTF-16")
    return bad_line(line)


def _tsv(source: str, spec: DatasetSpec) -> Rows:
    return _delimited(source, spec, "\t", quoting=bool(spec.quoting))


def _csv(source: str, spec: DatasetSpec) -> Rows:
    return _delimited(source, spec, ",", quoting=spec.quoting is not False)


def _delimited(source: str, spec: DatasetSpec, delimiter: str, quoting: bool) -> Rows:
    names: list[str] | list[int] = []
    width = 0  # fields of the first line
    hint = "set quoting false if quotes are literal" if quoting else "set quoting true if quotes enclose fields"
    for number, record in _quoted(source, delimiter) if quoting else _unquoted(source, delimiter):
        fields = [] if isinstance(record, Bad) else record
        bad = Bad(f"{record}; {hint}") if isinstance(record, Bad) else bad_line("".join(fields))
        if names or not spec.header:
            names, width = names or list(range(len(fields))), width or len(fields)
            if not bad and len(fields) != width:
                bad = Bad(f"found {len(fields)} fields, expected {width} as in the first line; {hint}")
            elif not bad and (beyond := "".join(fields[len(names) :]).strip()):
                bad = Bad(f"{quote(beyond)} stands beyond the last column that the header names; name that one too")
            yield f":{number}", bad or dict(zip(names, fields, strict=False))
        elif bad:
            raise RoadError(f"{source}:{number}: header: {bad}")
        else:
            names, width = _header(fields, f"{source}:{number}"), len(fields)


def _header(fields: list[str], place: str) -> list[str]:
    """The names of the columns, without those at the end that have none: a spreadsheet's empty columns."""
    named = [i for i, name in enumerate(fields, 1) if name]
    names = fields[: named[-1]] if named else []
    if not names:
        raise RoadError(f"{place}: the header names no column; expected names, or set header false")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RoadError(
            f"{place}: the header names column {quote(twice[0])} twice; rename one, or set "
            '"header": false if it is a row'
        )
    return names


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


def bad_line(line: str) -> Bad | None:
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
        raise RoadError(
            f"{where}, split {quote(source)}: {_hub_fault(error)}. Without the hub: {_instead(spec)}"
        ) from error
    yield from _table(dataset)


LOCAL = 'use a local folder (save_to_disk, then format "disk" with path set to it) or a JSONL, TSV or CSV file'


def _instead(spec: DatasetSpec) -> str:
    if spec.catalog is None:
        return LOCAL
    return f"set path to a folder that save_to_disk wrote, or to one with {catalog.bring(catalog.entry(spec.catalog))}"


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
    return f"{type(error).__name__}: {plain(error)}"  # such as an unknown split or configuration, with those there are


def plain(error: BaseException) -> str:
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
        raise RoadError(f"{spec.path}: not readable as a save_to_disk folder: {plain(error)}") from error
    # one split alone answers to its own name only, so that train and dev cannot become the same rows
    splits = {str(loaded.split or "train"): loaded} if isinstance(loaded, Dataset) else dict(loaded)
    name, _, first = source.removesuffix("]").partition("[:")  # "train[:840000]", as the hub's client reads it
    if name not in splits:
        raise RoadError(f"{spec.path}: no split {quote(name)}; the folder has {quote_all(splits)}")
    found = splits[name]
    yield from _table(found.select(range(min(int(first), len(found)))) if first else found)


def _table(dataset) -> Rows:
    from datasets import ClassLabel

    kinds = {column: getattr(kind, "feature", kind) for column, kind in dataset.features.items()}  # of a list's values
    names = {column: kind.names for column, kind in kinds.items() if isinstance(kind, ClassLabel)}
    for number, row in enumerate(dataset.with_format(None)):
        for column, known in names.items():
            row[column] = _named(row[column], known)
        yield f"[{number}]", row


def _named(value: Any, known: list[str]) -> Any:
    """A class by its name, each of a list; -1 (no label) stays a number."""
    if isinstance(value, list):
        return [_named(one, known) for one in value]
    return known[value] if value is not None and 0 <= value < len(known) else value


FORMATS: dict[str, Callable[[str, DatasetSpec], Rows]] = {
    "squad": _squad,
    "jsonl": _jsonl,
    "tsv": _tsv,
    "csv": _csv,
    "conll": _conll,
    "conllu": _conllu,
    "text": _text,
    "document": _document,
    "items": _items_of_list,
    "fields": _fields,
    "lines": _text_lines,
    "qasrl_gs": _qasrl_gs,
    "hub": _hub,
    "disk": _disk,
}
SUFFIXES = {
    ".json": "squad", ".jsonl": "jsonl", ".txt": "text", ".tsv": "tsv", ".csv": "csv", ".conll": "conll", ".conllu": "conllu",
}  # fmt: skip
