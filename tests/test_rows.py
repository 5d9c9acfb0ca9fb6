"""Generated rows through every reader, as one file and each row alone: the same examples."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from road_ds.common.errors import RoadError
from road_ds.config.road import Columns, DatasetSpec
from road_ds.data.readers import Example, Reading, read

Row = dict[str, Any]
many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r\0"), min_size=1, max_size=8)
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain
    | st.just("")
    | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(plain, inner, max_size=2),
    max_leaves=3,
)
TEXTS = [("premise", "hypothesis"), ("question", "sentence"), ("text_a", "text_b"), ("text", None), ("sentence", None)]


@st.composite
def rows_of_one_kind(draw: st.DrawFn) -> list[Row]:
    """Rows whose text is under one name: any labels and ids, fields lacking here and there, in any order."""
    first, second = draw(st.sampled_from(TEXTS))
    fields = {
        first: st.sampled_from(["", None, 5, "\ud83d"]) | plain | plain | plain,
        "label": any_json,
        "id": any_json,
        "other": any_json,
    }
    if second:
        fields[second] = st.sampled_from(["", None]) | plain | plain
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        kept = [name for name in fields if draw(st.integers(0, 9))]
        rows.append({name: draw(fields[name]) for name in draw(st.permutations(kept))})
    return rows


@st.composite
def questions(draw: st.DrawFn) -> list[Row]:
    """Questions over contexts, answers in both schemas and at right and wrong places, or none."""
    rows = []
    for _ in range(draw(st.integers(1, 5))):
        context = draw(plain)
        start = draw(st.integers(-1, len(context)))
        text = draw(st.sampled_from([context[max(start, 0) :], "", context]))
        count = draw(st.integers(0, 2))
        nested = [{"text": text, "answer_start": start}] * count
        answers = draw(st.sampled_from([nested, {"text": [text] * count, "answer_start": [start] * count}]))
        row = {"id": draw(any_json), "question": draw(plain), "context": context, "answers": answers}
        if draw(st.booleans()):
            row["is_impossible"] = draw(st.booleans())
        kept = [name for name in row if draw(st.integers(0, 9))]
        rows.append({name: row[name] for name in draw(st.permutations(kept))})
    return rows


def jsonl(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def squad(path: Path, rows: Sequence[Row]) -> None:
    paragraphs = [
        {
            "qas": [{key: row[key] for key in row if key != "context"}],
            **({"context": row["context"]} if "context" in row else {}),
        }
        for row in rows
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))


def flat(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps({"version": "1", "data": rows}))


def table(path: Path, rows: Sequence[Row], delimiter: str) -> None:
    """Every row's values as text under all columns of `rows`, which are those of the file and so of each row alone."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


def outcomes(path: Path, rows: Sequence[Row], spec: DatasetSpec) -> list[Example | None]:
    """What each row of a file became, None where it is bad or dropped; ids of numbered rows and places are left out."""
    reading = Reading()
    try:
        reading = read(str(path), spec)
    except RoadError as error:
        if "the data set is empty" not in str(error):
            raise
    found: list[Example | None] = [None] * len(rows)
    for example in reading.examples:
        where = example.where.removeprefix(path.name)
        number = int(re.findall(r"\d+", where.removesuffix(".qas[0]"))[-1])
        found[number - FIRST[path.suffix, "[" in where]] = replace(
            example, where="", id="numbered" if example.id.startswith(f"{path.stem}-") else example.id
        )
    return found


FIRST = {(".jsonl", False): 1, (".json", False): 1, (".json", True): 0, (".csv", False): 2, (".tsv", False): 2}


def alike(folder: Path, name: str, write: Any, rows: list[Row], spec: DatasetSpec) -> None:
    """Asserts that a row gives the same example in the file, alone, and in the file turned round.

    A row that gives one alone may be refused among others (where they have their text elsewhere, or a label), but never
    gives another.
    """
    write(folder / name, rows)
    together = outcomes(folder / name, rows, spec)
    for row, example in zip(rows, together, strict=True):
        write(folder / name, [row])
        (alone,) = outcomes(folder / name, [row], spec)
        assert example is None or example == alone
        if [set(other) for other in rows] == [set(row)] * len(rows):
            assert example == alone, "rows with the same columns do not touch each other"
    write(folder / name, rows[::-1])
    for example, turned in zip(together, outcomes(folder / name, rows, spec)[::-1], strict=True):
        assert None in (example, turned) or example == turned


SPECS = [
    {},
    {"columns": Columns(id=None)},
    {"columns": Columns(id=None, label=None, answers=None)},
    {"drop_labels": ["0", "true", "1"]},
]
specs = st.sampled_from(SPECS).map(lambda more: DatasetSpec(task="t", skip_bad=100, **more))


@given(rows_of_one_kind() | questions(), specs)
@many
@pytest.mark.parametrize(("name", "write"), [("a.jsonl", jsonl), ("a.json", jsonl), ("a.json", flat)])
def test_rows_of_json(tmp_path, name, write, rows, spec):
    rows = [row or {"other": 1} for row in rows]
    alike(tmp_path, name, write, rows, spec)


@given(questions(), specs)
@many
def test_questions_of_squad(tmp_path, rows, spec):
    alike(tmp_path, "a.json", squad, rows, spec)


@given(rows_of_one_kind(), specs, st.sampled_from([("a.csv", ","), ("a.tsv", "\t")]))
@many
def test_rows_of_tables(tmp_path, rows, spec, kind):
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["other"]
    cells = [{name: "" if row.get(name) in (None, "\ud83d") else str(row[name]) for name in names} for row in rows]
    cells = [{key: value.encode("utf-8", "replace").decode() for key, value in row.items()} for row in cells]
    spec = spec.model_copy(update={"quoting": True})
    alike(tmp_path, kind[0], lambda path, rows: table(path, rows, kind[1]), cells, spec)


@given(questions(), specs)
@many
def test_the_same_questions_in_every_file_are_the_same_examples(tmp_path, rows, spec):
    found = []
    for name, write in (("a.jsonl", jsonl), ("a.json", jsonl), ("a.json", flat), ("a.json", squad)):
        rows = [row or {"other": 1} for row in rows]
        write(tmp_path / name, rows)
        found.append(outcomes(tmp_path / name, rows, spec))
    assert found[0] == found[1] == found[2] == found[3]


@given(st.lists(plain, min_size=1, max_size=5), st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_a_saved_data_set(tmp_path, texts, data):
    """Arrow tables hold one type a column; what a row lacks is null there."""
    datasets = pytest.importorskip("datasets")
    kind = data.draw(
        st.sampled_from(
            [st.booleans(), st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(-1, 9), plain]
        )
    )
    labels = [data.draw(st.none() | kind) for _ in texts]
    seconds = [data.draw(st.none() | plain) for _ in texts]
    schema = datasets.Dataset.from_dict({"text_a": texts, "text_b": seconds, "label": labels}).features
    rows = [
        dict(zip(("text_a", "text_b", "label"), row, strict=True)) for row in zip(texts, seconds, labels, strict=True)
    ]
    spec = DatasetSpec(task="t", format="disk", path=str(tmp_path / "saved"), skip_bad=100)

    def examples(rows: list[Row]) -> list[tuple]:
        datasets.Dataset.from_list(rows, features=schema).save_to_disk(tmp_path / "saved")
        try:
            return [(e.text_a, e.text_b, e.label) for e in read("train", spec).examples]
        except RoadError as error:
            assert "the data set is empty" in str(error)
            return []

    assert examples(rows) == [example for row in rows for example in examples([row])]
    expected = [(row["text_a"], row["text_b"]) for row in rows if row["label"] is not None]
    assert [example[:2] for example in examples(rows)] == expected
