"""The choices of a question: what a row may hold them as."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from road_ds.common.strict_json import quote
from road_ds.data.labels import whole
from road_ds.data.publishers import Bad, Row

CHOICES = ("choices", "endings", "options")  # well-known names of a column of lists
NUMBERED = ("ending", "choice", "option")  # and of columns with a number behind: ending0, ending1 ...


@dataclass(frozen=True, slots=True)
class Choice:
    """key: what a label calls it, "A"; its position from 0 where the row names none."""

    key: str
    text: str


def choice_columns(row: Row) -> str | list[str | int] | None:
    """The well-known columns that hold a row's choices, None where there are none."""
    if named := next((name for name in CHOICES if isinstance(row.get(name), list | Mapping)), None):
        return named
    for name in NUMBERED:
        for first in (0, 1):
            found: list[str | int] = []
            while f"{name}{first + len(found)}" in row:
                found.append(f"{name}{first + len(found)}")
            if len(found) > 1:
                return found
    return None


def choices_of(value: Any) -> tuple[Choice, ...]:
    """Choices from [text, ...], from {"text": [...], "label": [...]}, or from [{"text", "label"}, ...]. Bad for fewer than two."""
    keys, texts = _keyed(value)
    if keys is None:
        keys = [str(number) for number in range(len(texts))]
    if len(texts) < 2 or len(keys) != len(texts) or len(set(map(str, keys))) < len(keys):
        raise Bad(
            f"choices are {quote(value)}; expected two or more, each with a label of its own or none with one; "
            "where they are no choices, set columns.choices to null"
        )
    if bad := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise Bad(f"choice {quote(bad[0])} is no text; expected one in each")
    return tuple(Choice(str(key), whole(text, "choice")) for key, text in zip(keys, texts, strict=True))


def _keyed(value: Any) -> tuple[Sequence[Any] | None, Sequence[Any]]:
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        return value.get("label"), value["text"]
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "text" in one for one in value):
        named = [one.get("label") for one in value]
        return None if named == [None] * len(value) else named, [one["text"] for one in value]
    if isinstance(value, list):
        return None, value
    raise Bad(f'choices are {quote(value)}; expected a list of texts, or {{"text": [...], "label": [...]}}')
