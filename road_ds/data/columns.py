"""Which columns of a row hold what: those that are named, else those with well-known names."""

from collections.abc import Iterable
from dataclasses import dataclass

from road_ds.common.strict_json import quote
from road_ds.config.road import Columns
from road_ds.data.choices import choice_columns
from road_ds.data.formats import quote_all
from road_ds.data.publishers import Bad, Row

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
    ("tokens", None),
    ("words", None),
    ("sent1", "sent2"),  # SWAG
    ("ctx", None),  # HellaSwag
    ("question_stem", None),  # OpenBookQA
)
LONE = ("text_a", "text", "sentence", "review", "tokens", "words")
SECOND = "text_b"  # always the second text where `columns` names no other
LABELS = ("label", "gold_label", "labels", "tags", "ner_tags", "answerKey")
# Labels of public sets, where a row has one of them and none of the above: STS-B's, MRPC's, QQP's, IMDB's, Yelp's, SICK's, ...
RARER = (
    *("score", "Quality", "is_duplicate", "sentiment", "stars", "rating", "intent", "category", "class"),
    *("relatedness_score", "entailment_judgment"),
)
BOOLQ = ("passage", "answer")  # a text and a label there; elsewhere an answer may be any text


@dataclass(frozen=True, slots=True)
class Found:
    """The columns of rows with some keys, by what they hold; lone: a row may lack its second text."""

    id: str | int | None
    text_a: str | int | None
    text_b: str | int | None
    label: str | int | list[str | int] | None
    answers: str | int | None
    choices: str | int | list[str | int] | None
    lone: bool


def find(given: Columns, row: Row, before: Found | None) -> Found:
    """The columns to read: those given, else those of the rows before, else those with well-known names in the row.

    Bad where the row could have its texts or its label elsewhere than the rows before: which is meant is not guessed.
    """
    choices = given.choices if "choices" in given.model_fields_set else choice_columns(row)
    pairs = [(a, b) for a, b in TEXTS if a in row and (b in row or a in LONE or choices is not None)]
    text_a = given.text_a
    if text_a is None:
        text_a = _column("text_a", [a for a, _ in pairs], row, before)
        if text_a is None:
            half = next((f" ({a!r} goes with {b!r}, which is not there)" for a, b in TEXTS if a in row), "")
            raise Bad(
                f"no column with a well-known name for text{half}; set columns.text_a to one of {quote_all(row)}"
                f"{', and text_b for the other text' if half else ''}{headless(row)}"
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
        choices=choices,
        lone="text_b" not in given.model_fields_set,
    )


def _labels(given: Columns, row: Row) -> tuple[str, ...]:
    """The names under which a row's label may stand. Bad where two of the rarer ones do; beside answers they are none."""
    found = tuple(name for name in RARER if name in row)
    found += BOOLQ[1:] * all(name in row for name in BOOLQ)
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


def headless(row: Row, wanted: str | int = "") -> str:
    """What to set where the names of the columns look like the first row of a table without a header."""
    names = [name for name in row if isinstance(name, str)]
    like_values = any(len(name.split()) > 3 or name[:1].isdigit() or name in map(str, row.values()) for name in names)
    if names and (isinstance(wanted, int) or like_values):
        return '; if these are a row, set "header": false and give columns by position, {"text_a": 0, ...}'
    return ""
