"""A row's label: one value, or several names."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from road_ds.common.strict_json import SURROGATE, quote
from road_ds.data.publishers import Bad, Row

# A number only where the source has a fraction or exponent, an integer is text, "5"; several names: a list of labels.
Label = str | float | tuple[str, ...]

BOOLEANS = {"true": ("True", "1"), "false": ("False", "0")}
FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


def label_of(value: Any, separator: str | None = None) -> Label:
    """The label that a column's value says; a list, or text with separators in it, is a list of labels, possibly empty."""
    if isinstance(value, str) and separator is not None:
        value = [part for part in map(str.strip, value.split(separator)) if part]
    if isinstance(value, list):
        return tuple(str(_one(inner)) for inner in value)
    return _one(value)


def _one(value: Any) -> str | float:
    """Text as it is, true, false and integers as JSON writes them, and other numbers as float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    if isinstance(value, str | int) and value != "":
        return whole(str(value), "label")
    raise Bad(f"label is {quote(value)}; expected text or a finite number, or a list of them")


def flagged(row: Row, columns: Sequence[str | int]) -> tuple[str, ...]:
    """The names of the columns that are 1; each must be 1 or 0, or true or false."""
    found = []
    for name in columns:
        flag = FLAGS.get(str(row[name]).lower())
        if flag is None:
            raise Bad(
                f"column {quote(name)} (columns.label) is {quote(row[name])}; expected 0 or 1: does the label apply?"
            )
        if flag:
            found.append(str(name))
    return tuple(found)


def called(label: str | float) -> tuple[str, ...]:
    """What `label_map` and `drop_labels` may call a label: as it is written; 1.0 also "1", and true also "True" and "1"."""
    if isinstance(label, float):
        return (str(label), f"{label + 0:.0f}") if label.is_integer() else (str(label),)
    return (label, *BOOLEANS.get(label, ()))


def has_any(label: Label, names: Collection[str]) -> bool:
    """Whether a label, or one of several, is called by one of the names."""
    return any(name in names for one in each(label) for name in called(one))


def renamed(label: Label, names: Mapping[str, str]) -> Label:
    """The label by its new name, if it has one; each of several by its own."""
    found = [next((names[name] for name in called(one) if name in names), one) for one in each(label)]
    return tuple(map(str, found)) if isinstance(label, tuple) else found[0]


def each(label: Label) -> Sequence[str | float]:
    """The labels that a label is: itself, or those of a list."""
    return label if isinstance(label, tuple) else (label,)


def whole(text: str, what: str) -> str:
    """The text itself. Bad where it holds half a surrogate pair, which UTF-8 cannot say."""
    if found := SURROGATE.search(text):
        raise Bad(f"{what} has {quote(found[0])} at {found.start()}, half a character; mend the text")
    return text
