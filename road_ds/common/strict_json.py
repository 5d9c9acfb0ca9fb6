"""JSON read strictly: a repeated key, NaN, bad UTF-8 or deep nesting is an error that says where."""

import gzip
import json
import re
import reprlib
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from road_ds.common.errors import RoadError

# Half a character: an escape without its other half, or a byte that is not UTF-8.
SURROGATE = re.compile("[\ud800-\udfff]")


def load_json(path: str | Path) -> Any:
    """The JSON value of a file, which may be gzipped (.gz); every fault is a RoadError with file, line and column."""
    try:
        data = Path(path).read_bytes()
        if str(path).endswith(".gz"):
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RoadError(f"{path}: not a whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise RoadError(f"cannot read {path}: {error.strerror}; give the path of a JSON file") from error
    try:
        return parse_json(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RoadError(
            f"{path}:{line}: byte 0x{data[error.start]:02X} is not UTF-8; save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise RoadError(f"{path}:{error.lineno}: malformed JSON at column {error.colno}: {error.msg}") from error
    except ValueError as error:
        raise RoadError(f"{path}: {error}") from error


def parse_json(text: str) -> Any:
    """The JSON value; ValueError for malformed text, duplicate keys, NaN or Infinity, and too deep nesting."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("JSON nested too deeply; expected a few levels") from None


def half_character(value: Any) -> str | None:
    """A text in a JSON value that UTF-8 cannot hold, None where it can hold all. However deep the value is nested."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str) and SURROGATE.search(item):
            return item
        if isinstance(item, dict):
            rest += [*item, *item.values()]
        elif isinstance(item, list):
            rest += item
    return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"key {quote(twice)} stands twice in one object; keep one")
    return result


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write a number or null")


def quote(value: Any, limit: int = 80) -> str:
    """The value as an error message shows it: control characters escaped, about `limit` characters at most."""
    shorten = reprlib.Repr()
    shorten.maxstring = shorten.maxother = shorten.maxlong = limit
    shorten.maxlevel = 2
    shown = shorten.repr(value)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def flat_keys(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested blocks as one, by dotted key; an empty block stays a value."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= flat_keys(inner, f"{prefix}.{key}" if prefix else str(key))
    return result
