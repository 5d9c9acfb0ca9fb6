"""Every format, every fault by its message, real files completely, and the hub through its real client."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_in_hub import client_environment, serve

from road_ds.common.errors import RoadError
from road_ds.config.road import Columns, DatasetSpec
from road_ds.data.formats import FORMATS, LIMIT
from road_ds.data.readers import Answer, Example, Reading, distinct, read
from road_ds.data.sources import Source

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
real_rows = pytest.mark.skipif(not DATA.is_dir(), reason=f"real rows are not at {DATA}")
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def spec(columns=None, **settings) -> DatasetSpec:
    return DatasetSpec(task="t", columns=Columns(**(columns or {})), **settings)


@pytest.fixture
def write(tmp_path):
    """Writes text or bytes to a file of that name and gives its path."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return str(path)

    return write


def squad(qas: list, context: str = "Ärger in 😀 Rouen.") -> str:
    return json.dumps({"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": context, "qas": qas}]}]})


def qa(id="q1", text="Rouen", start=11, **more) -> dict:
    return {"id": id, "question": "Where?", "answers": [{"text": text, "answer_start": start}], **more}


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


PAIR = {"premise": "p", "hypothesis": "h", "label": "yes"}
SPAN = {"question": "Where?", "context": "In Rouen.", "answers": {"text": ["Rouen"], "answer_start": [3]}}


# --------------------------------------------------------------------------------------------- real files

MRPC = {"label": "Quality", "text_a": "#1 String", "text_b": "#2 String"}


@real_rows
@pytest.mark.parametrize(
    ("file", "settings", "labels"),
    [
        ("squad2/train.json", {}, {None: 6933}),
        ("squad2/dev.json", {}, {None: 1494}),
        ("snli/train.tsv", {}, {"entailment": 562, "neutral": 554, "contradiction": 550}),
        ("snli/dev.tsv", {}, {"entailment": 74, "neutral": 75, "contradiction": 51}),
        ("snli/test.tsv", {}, {"entailment": 146, "neutral": 123, "contradiction": 131}),
        (
            "mnli/matched_1000.tsv",
            {"header": False, "columns": {"label": 0, "text_a": 1, "text_b": 2}},
            {"entailment": 373, "neutral": 311, "contradiction": 316},
        ),
        ("mrpc/train.tsv", {"columns": MRPC}, {"1": 2407, "0": 1169}),
        ("mrpc/dev.tsv", {"columns": MRPC}, {"1": 346, "0": 154}),
        ("mrpc/test.tsv", {"columns": MRPC}, {"1": 1147, "0": 578}),
        (
            "alexa/reviews.tsv",
            {"quoting": True, "columns": {"label": "rating", "text_a": "verified_reviews"}},
            {"5": 2280, "4": 452, "3": 152, "2": 81, "1": 145},
        ),
        ("qasrl/gold.csv", {"columns": {"text_a": "question"}}, {None: 3714}),
        ("qasrl/sentences.csv", {"columns": {"id": "qasrl_id", "text_a": "sentence"}}, {None: 917}),
    ],
)
def test_real_files_are_read_completely(file, settings, labels):
    reading = read(str(DATA / file), spec(**settings))
    found = [example.label for example in reading.examples]
    assert {label: found.count(label) for label in set(found)} == labels
    assert (reading.skipped, reading.dropped) == ([], {})


@real_rows
def test_real_squad_rows_are_answerable_as_stated():
    examples = read(str(DATA / "squad2/dev.json"), spec()).examples
    assert sum(bool(example.answers) for example in examples) == 725
    assert examples[0].id == "56ddde6b9a695914005b9628"
    assert examples[0].answers == (Answer("France", 159),) * 4
    assert examples[-1].where == "dev.json data[3].paragraphs[45].qas[9]"


@real_rows
def test_a_quoting_reader_never_loses_rows_of_literal_quotes_silently():
    with pytest.raises(RoadError, match=r"train\.tsv:\d+: .*set quoting false if quotes are literal"):
        read(str(DATA / "mrpc/train.tsv"), spec(MRPC, quoting=True))


# ------------------------------------------------------------------------------------------ what is read


def test_squad(write):
    file = write(
        "dev.json", "\ufeff" + squad([qa(), {"id": "q2", "question": "Who?", "answers": [], "is_impossible": True}])
    )
    first, second = read(file, spec()).examples
    where = "dev.json data[0].paragraphs[0].qas[0]"
    assert first == Example("q1", "Where?", "Ärger in 😀 Rouen.", None, (Answer("Rouen", 11),), where)
    assert second.answers == ()


def test_plausible_answers_are_not_answers(write):
    plausible = {"plausible_answers": [{"text": "nowhere", "answer_start": 0}]}
    row = {"id": "q", "question": "Who?", "answers": [], "is_impossible": True, **plausible}
    assert read(write("a.json", squad([row])), spec()).examples[0].answers == ()


def test_squad_questions_without_answers_key_have_no_label(write):
    assert read(write("a.json", squad([{"id": "q", "question": "Who?"}])), spec()).examples[0].answers is None


@pytest.mark.parametrize(
    ("row", "text_a", "text_b"),
    [
        ({"premise": "a", "hypothesis": "b"}, "a", "b"),
        ({"sentence1": "a", "sentence2": "b"}, "a", "b"),
        ({"question1": "a", "question2": "b"}, "a", "b"),
        ({"question": "a", "context": "b"}, "a", "b"),
        ({"text_a": "a", "text_b": "b"}, "a", "b"),
        ({"question": "a", "sentence": "b"}, "a", "b"),
        ({"text": "a"}, "a", None),
        ({"sentence": "a"}, "a", None),
        ({"text_a": "a"}, "a", None),
    ],
)
@pytest.mark.parametrize("label", ["label", "gold_label"])
def test_well_known_columns_need_no_settings(write, row, text_a, text_b, label):
    example = read(write("train.jsonl", jsonl({**row, label: "x"})), spec()).examples[0]
    assert example == Example("train-0", text_a, text_b, "x", None, "train.jsonl:1")


PUBLIC = [  # as their publishers, or the hub's copies, have them
    ({"question": "q", "title": "T", "answer": True, "passage": "p"}, ("q", "p", "true")),  # BoolQ
    ({"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "one", "#2 String": "two"}, ("one", "two", "1")),  # MRPC
    (
        {"index": 0, "genre": "g", "sentence1": "one", "sentence2": "two", "score": "3.8"},
        ("one", "two", "3.8"),
    ),  # STS-B
    (
        {"id": 4, "qid1": 1, "qid2": 2, "question1": "one", "question2": "two", "is_duplicate": 0},
        ("one", "two", "0"),
    ),  # QQP
    ({"uid": "u", "context": "c", "hypothesis": "h", "label": "e", "reason": ""}, ("c", "h", "e")),  # ANLI
    ({"review": "good", "sentiment": "positive"}, ("good", None, "positive")),  # IMDB
    ({"text": "pay", "category": "card_arrival"}, ("pay", None, "card_arrival")),  # Banking77
    ({"text": "t", "label": "l", "score": 0.5, "category": "c"}, ("t", None, "l")),
]


@pytest.mark.parametrize(("row", "found"), PUBLIC)
def test_columns_of_public_sets_need_no_settings(write, row, found):
    example = read(write("train.jsonl", jsonl(row)), spec()).examples[0]
    assert (example.text_a, example.text_b, example.label) == found


def test_what_may_be_a_label_is_not_chosen_from(write):
    row = {"sentence_A": "a", "sentence_B": "b", "relatedness_score": 4.5, "entailment_judgment": "NEUTRAL"}  # SICK
    file = write("a.jsonl", jsonl(row))
    with pytest.raises(
        RoadError, match=r"a\.jsonl:1: columns\.label could be 'relatedness_score' or 'entailment_judgment': set it"
    ):
        read(file, spec())
    assert read(file, spec({"label": "relatedness_score"})).examples[0].label == 4.5
    assert read(file, spec({"label": None})).examples[0].label is None
    beside = read(write("b.jsonl", jsonl({**SPAN, "answer": {"any": 1}, "score": None})), spec()).examples[0]
    assert beside.label is None and beside.answers == (Answer("Rouen", 3),)


@pytest.mark.parametrize("name", ["a.txt", "a.TXT.gz", "folder"])
def test_a_line_of_a_txt_is_a_text_where_nothing_is_trained(write, tmp_path, name):
    """In training it is documents, for the pretraining that reads them."""
    content, path = "one\ntwo\n\nthree\n", tmp_path / name
    if name == "folder":
        path.mkdir()
        (path / "a.txt").write_text(content)
    else:
        write(name, gzip.compress(content.encode()) if name.endswith("gz") else content)
    texts = Source.of("a", "dev", spec(dev=str(path)), scored=False).examples(Reading())
    assert [e.text_a for e in texts] == ["one", "two", "three"]
    documents = Source.of("a", "dev", spec({"label": None}, dev=str(path))).examples(Reading())
    assert [e.text_a for e in documents] == ["one\ntwo", "three"]
    whole = Source.of("a", "dev", spec(dev=str(path), format="document"), scored=False).examples(Reading())
    assert [e.text_a for e in whole] == ["one\ntwo\nthree"]


def test_given_columns_come_before_well_known_ones(write):
    row = {"text": "no", "label": "no", "id": "no", "body": "yes", "stars": 4, "key": 7}
    columns = {"text_a": "body", "label": "stars", "id": "key"}
    assert read(write("a.jsonl", jsonl(row)), spec(columns)).examples[0] == Example(
        "7", "yes", None, "4", None, "a.jsonl:1"
    )


@pytest.mark.parametrize("first", [{}, {"text_b": None}, {"text_b": ""}, {"text_b": "1"}])
def test_the_second_text_may_be_lacking_and_is_never_dropped(write, first):
    rows = [{"text_a": "one", **first}, {"text_a": "two", "text_b": "2"}, {"text_a": "three", "label": "x"}]
    examples = read(write("a.jsonl", jsonl(*rows)), spec()).examples
    assert [(e.text_a, e.text_b, e.label) for e in examples] == [
        ("one", first.get("text_b") or None, None), ("two", "2", None), ("three", None, "x"),
    ]  # fmt: skip
    with pytest.raises(RoadError, match=r"a\.jsonl:3: no column 'text_b' \(columns\.text_b\)"):
        read(write("a.jsonl", jsonl(rows[1], rows[1], rows[2])), spec({"text_b": "text_b"}))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"text": "one"}, {}), ({"sentence": "one"}, {}), ({"text_a": "one"}, {"text_a": "text_a"}),
        ({"body": "one"}, {"text_a": "body"}), ({"text": "one", "body": "no"}, {"text_a": "text"}),
    ],
)  # fmt: skip
def test_a_column_called_text_b_is_the_second_text_beside_any_first(write, row, columns):
    rows = [{**row, "text_b": "2"}, row, {**row, "text_b": ""}]
    examples = [
        e for first in (rows, rows[::-1]) for e in read(write("a.jsonl", jsonl(*first)), spec(columns)).examples
    ]
    assert [(e.text_a, e.text_b) for e in examples] == [("one", b) for b in ("2", None, None, None, None, "2")]
    one = read(write("b.jsonl", jsonl(*rows)), spec(columns | {"text_b": None})).examples
    assert {e.text_b for e in one} == {None}


def test_two_second_texts_are_not_chosen_from(write):
    file = write("a.jsonl", jsonl({**PAIR, "text_b": "or this"}))
    with pytest.raises(RoadError, match=r"a\.jsonl:1: columns\.text_b could be 'hypothesis' or 'text_b': set it"):
        read(file, spec())
    assert [read(file, spec({"text_b": name})).examples[0].text_b for name in ("text_b", "hypothesis", None)] == [
        "or this", PAIR["hypothesis"], None,
    ]  # fmt: skip


def test_a_null_says_that_there_is_no_such_column(write):
    row = {"id": "x", "text_a": "a", "text_b": "b", "label": "l", "answers": [], "is_impossible": True}
    none = dict.fromkeys(("id", "text_b", "label", "answers"))
    assert read(write("a.jsonl", jsonl(row)), spec(none)).examples == [
        Example("a-0", "a", None, None, None, "a.jsonl:1")
    ]
    dumped = DatasetSpec(task="t", columns=Columns(**none)).model_dump()
    assert dumped["columns"] == none and DatasetSpec(task="t").model_dump()["columns"] == {}


@pytest.mark.parametrize("ids", [["x", "x"], [1.5, 2.5], [None, None], [True, ""], [["x"], {}]])
def test_a_null_for_the_id_numbers_the_rows(write, ids):
    file = write("a.jsonl", jsonl(*({**PAIR, "id": id} for id in ids)))
    assert [e.id for e in read(file, spec({"id": None})).examples] == ["a-0", "a-1"]
    nested = write("b.json", squad([qa(id=id) for id in ids]))
    assert [e.id for e in read(nested, spec({"id": None})).examples] == ["b-0", "b-1"]


def test_ids_must_differ_where_rows_are_scored(write):
    file = write("a.json", squad([qa(), qa("q2"), qa()]))
    examples = read(file, spec()).examples
    assert [e.id for e in examples] == ["q1", "q2", "q1"]
    at = r"a\.json data\[0\]\.paragraphs\[0\]\.qas"
    with pytest.raises(RoadError, match=rf"{at}\[2\]: id 'q1' also stands at {at}\[0\]; .* columns\.id .* or to null"):
        list(distinct(examples))
    assert list(distinct(examples[:2])) == examples[:2]


@pytest.mark.parametrize(
    ("settings", "labels", "kept"),
    [
        ({"drop_labels": ["0"]}, [0, 0.0, False, "0", -0.0, 1.0], [1.0]),
        ({"drop_labels": ["1.0"]}, [1, 1.0], ["1"]),
        ({"drop_labels": ["True"]}, [True, False, "True", "1", 1], ["false", "1", "1"]),
    ],
)
def test_settings_name_a_label_however_it_is_written(write, settings, labels, kept):
    file = write("a.jsonl", jsonl(*({"text": "t", "label": label} for label in labels)))
    assert [e.label for e in read(file, spec(**settings)).examples] == kept


@pytest.mark.parametrize("answers", [[{"text": "", "answer_start": -1}], {"text": ["", ""], "answer_start": [-1, -1]}])
@pytest.mark.parametrize("more", [{}, {"is_impossible": True}])
def test_an_empty_text_at_minus_one_is_no_answer(write, answers, more):
    row = {"id": "q", "question": "Who?", "context": "c", "answers": answers, **more}
    assert read(write("a.jsonl", jsonl(row)), spec()).examples[0].answers == ()
    assert read(write("a.json", squad([row])), spec()).examples[0].answers == ()


FLAT = [{"id": f"q{n}", "title": "T", **SPAN} for n in range(2)]


@pytest.mark.parametrize(
    ("content", "places"),
    [
        (json.dumps({"version": "0.1.0", "data": FLAT}), [" data[0]", " data[1]"]),
        (json.dumps({"version": "0.1.0", "data": FLAT}, indent=2), [" data[0]", " data[1]"]),
        (jsonl(*FLAT), [":1", ":2"]),
        ("\ufeff\n" + jsonl(FLAT[0]) + "\n" + jsonl(FLAT[1]), [":2", ":4"]),
        (jsonl(*(row | {"data": "more"} for row in FLAT)), [":1", ":2"]),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_flat_questions_and_json_lines_in_a_json_file(write, content, places, suffix):
    packed = gzip.compress(content.encode()) if suffix else content
    examples = read(write(f"dev.json{suffix}", packed), spec()).examples
    expected = [("Where?", "In Rouen.", (Answer("Rouen", 3),), f"dev.json{suffix}{place}") for place in places]
    assert [(e.text_a, e.text_b, e.answers, e.where) for e in examples] == expected
    assert [e.id for e in examples] == ["q0", "q1"]


@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_columns_without_a_name_at_the_end_are_a_spreadsheets(write, name, between):
    """A leading column without a name is an index, as pandas writes it."""
    content = ",label,text,,,\n0,ham,one,,,\n1,spam,two, ,,\n".replace(",", between)
    examples = read(write(name, content), spec()).examples
    assert [(e.text_a, e.label) for e in examples] == [("one", "ham"), ("two", "spam")]


@pytest.mark.parametrize(
    ("value", "label"), [(4, "4"), (4.5, 4.5), (1.0, 1.0), ("4.5", "4.5"), (True, "true"), (-1, "-1")]
)
def test_labels(write, value, label):
    found = read(write("a.jsonl", jsonl({"text": "t", "label": value})), spec()).examples[0].label
    assert found == label
    assert type(found) is type(label)


def test_span_rows_in_json_lines_in_both_schemas(write):
    file = write(
        "a.jsonl", jsonl(SPAN, {**SPAN, "answers": [{"text": "In", "answer_start": 0}]}, {**SPAN, "answers": []})
    )
    assert [example.answers for example in read(file, spec()).examples] == [
        (Answer("Rouen", 3),),
        (Answer("In", 0),),
        (),
    ]


def test_positions_in_a_file_without_header(write):
    file = write("a.tsv", "yes\tone\ttwo\nno\tthree\tfour\n")
    examples = read(file, spec({"label": 0, "text_a": 1, "text_b": 2}, header=False)).examples
    assert examples[1] == Example("a-1", "three", "four", "no", None, "a.tsv:2")


def test_line_breaks_inside_quotes_and_the_line_where_the_row_starts(write):
    file = write("a.csv", 'text,label\n"one\ntwo ""x"", three",yes\nfour,no\n')
    examples = read(file, spec()).examples
    assert [(e.text_a, e.where) for e in examples] == [('one\ntwo "x", three', "a.csv:2"), ("four", "a.csv:4")]


def test_literal_quotes_and_carriage_returns_without_quoting(write):
    file = write("a.tsv", '\ufefftext\tlabel\r\n"one\tyes\r\ntwo"\u2028x\x85y\tno\r\n\r\n')
    assert [(e.text_a, e.label) for e in read(file, spec()).examples] == [('"one', "yes"), ('two"\u2028x\x85y', "no")]


def test_other_suffix_by_format(write):
    assert set(FORMATS) == {
        "squad",
        "jsonl",
        "tsv",
        "csv",
        "conll",
        "conllu",
        "text",
        "document",
        "items",
        "fields",
        "lines",
        "qasrl_gs",
        "hub",
        "disk",
    }
    assert read(write("rows.lines", jsonl(PAIR)), spec(format="jsonl")).examples[0].id == "rows-0"


def test_white_space_is_text_where_there_is_no_span(write):
    assert read(write("a.tsv", "text\tlabel\n \tyes\n"), spec()).examples[0].text_a == " "


def test_a_row_of_a_megabyte(write):
    long = "word " * 250_000
    assert read(write("a.jsonl", jsonl({"text": long})), spec()).examples[0].text_a == long
    assert read(write("a.csv", f'text\n"{long}"\n'), spec()).examples[0].text_a == long
    assert read(write("a.tsv", f"text\n{long}\n"), spec()).examples[0].text_a == long


def test_generated_ids_do_not_depend_on_what_is_left_out(write):
    file = write("a.jsonl", jsonl(PAIR, {**PAIR, "label": "-"}, {**PAIR, "premise": ""}, PAIR, PAIR))
    reading = read(file, spec(drop_labels=["-"], skip_bad=1))
    assert [example.id for example in reading.examples] == ["a-0", "a-3", "a-4"]
    assert reading.dropped == {"-": 1}
    assert reading.skipped == [f"{file}:3: column 'premise' (columns.text_a) is empty; expected text"]


def test_labels_are_dropped_by_name_also_when_they_are_numbers(write):
    file = write("a.jsonl", jsonl(*({"text": "t", "label": label} for label in (-1, 0, -1, 0.5))))
    reading = read(file, spec(drop_labels=["-1", "0.5", "unused"]))
    assert ([e.label for e in reading.examples], reading.dropped) == (["0"], {"-1": 2, "0.5": 1})


def test_max_rows_stops_reading(write):
    file = write("a.jsonl", jsonl(PAIR, PAIR) + "not read\n")
    assert len(read(file, spec(max_rows=2)).examples) == 2


# --------------------------------------------------------------------------------------- faults, by message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # JSON lines
        ("a.jsonl", jsonl(PAIR) + '{"premise": "p" 1}\n', r"a\.jsonl:2: malformed JSON at column 17: Expecting ','"),
        ("a.jsonl", '{"premise": "p"', r"a\.jsonl:1: malformed JSON at column 16"),
        ("a.jsonl", '{"premise": NaN}', r"a\.jsonl:1: NaN is not JSON"),
        ("a.jsonl", '{"premise": -Infinity}', r"a\.jsonl:1: -Infinity is not JSON"),
        ("a.jsonl", '{"text": "a", "text": "b"}', r"a\.jsonl:1: key 'text' stands twice"),
        ("a.jsonl", '["p", "h"]', r"a\.jsonl:1: \['p', 'h'\] is not an object"),
        ("a.jsonl", "null", r"a\.jsonl:1: None is not an object"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, r"a\.jsonl:1: JSON nested too deeply"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"a\.jsonl:1: Exceeds the limit"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "caf\xe9 noir"}\n', r"a\.jsonl:2: byte 0xE9 in .*caf.* is not UTF-8"),
        ("a.jsonl", '{"text": "\\ud83d"}', r"a\.jsonl:1: column 'text' has '\\ud83d' at 0, half a character"),
        ("a.jsonl", jsonl({"text": None}), r"a\.jsonl:1: column 'text' \(columns\.text_a\) is null"),
        ("a.jsonl", jsonl({"text": 5}), r"column 'text' \(columns\.text_a\) is 5; expected text"),
        ("a.jsonl", jsonl({"text": ""}), r"column 'text' \(columns\.text_a\) is empty"),
        ("a.jsonl", jsonl({**PAIR, "hypothesis": ""}), r"column 'hypothesis' \(columns\.text_b\) is empty"),
        ("a.jsonl", jsonl(PAIR, {"premise": "p", "label": "x"}), r"a\.jsonl:2: no column 'hypothesis' \(columns\.text_b\); found 'premise', 'label'"),
        ("a.jsonl", jsonl(PAIR, {**PAIR, "label": None}), r"a\.jsonl:2: column 'label' \(columns\.label\) is null"),
        ("a.jsonl", jsonl({**PAIR, "label": [["x"]]}), r"label is \['x'\]; expected text or a finite number"),
        ("a.jsonl", '{"text": "t", "label": 1e999}', r"label is inf"),
        ("a.jsonl", jsonl({**PAIR, "id": ""}), r"id is ''; expected text or an integer"),
        ("a.jsonl", jsonl({"body": "b", "stars": 1}), r"a\.jsonl:1: no column with a well-known name .* columns\.text_a to one of 'body', 'stars'"),
        ("a.jsonl", "{}", r"to one of no columns"),
        ("a.jsonl", jsonl(*({**PAIR, "id": id} for id in (1, 2.5))), r"a\.jsonl:2: id is 2\.5; .* or set columns\.id to null to number"),
        ("a.jsonl", jsonl({**PAIR, "id": None}), r"id is None; expected text or an integer, or set columns\.id to null"),
        ("a.jsonl", '{"text": "t", "id": "q\\ud83d"}', r"a\.jsonl:1: id has '\\ud83d' at 1, half a character; mend the text"),
        ("a.jsonl", '{"text": "t", "label": "\\ud83d"}', r"a\.jsonl:1: label has '\\ud83d' at 0, half a character"),
        ("a.jsonl", jsonl({"sentence": "s"}, {"sentence": "s", "text": "t"}), r"a\.jsonl:2: columns\.text_a could be 'sentence', as in the rows before, or 'text': set it"),
        ("a.jsonl", jsonl({"sentence": "s"}, {"text": "t"}), r"a\.jsonl:2: no column 'sentence' \(columns\.text_a\); found 'text'"),
        ("a.jsonl", jsonl({"text": "t", "gold_label": "x"}, {"text": "t", "gold_label": "x", "label": "y"}), r"a\.jsonl:2: columns\.label could be 'gold_label', as in the rows before, or 'label'"),
        ("a.jsonl", jsonl({"text": "t"}, {"text": "t", "label": "x"}, {"text": "t"}), r"a\.jsonl:3: no column 'label' \(columns\.label\)"),
        ("a.jsonl", "\n \n", r"a\.jsonl: the data set is empty"),
        # span rows
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": ["rouen"], "answer_start": [3]}}), r"a\.jsonl:1: id 'a-0': answer 'rouen' should stand at 3 of the context, which has 'Rouen' there"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": [" "], "answer_start": [2]}}), r"a\.jsonl:1: id 'a-0': answer ' ' at 2; expected text and"),
        ("a.jsonl", jsonl(SPAN | {"answers": [{"text": "\u00a0\n", "answer_start": 2}]}), r"expected text and an integer offset"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": ["Rouen"], "answer_start": [-6]}}), r"'Rouen' should stand at -6 of the context, which has '' there"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": ["Rouen"], "answer_start": [99]}}), r"at 99 of the context, which has ''"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": ["Rouen"], "answer_start": [3, 4]}}), r"id 'a-0': answers are .* with lists of one length"),
        ("a.jsonl", jsonl(SPAN | {"answers": "Rouen"}), r"id 'a-0': answers are 'Rouen'; expected"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": ["Rouen"], "answer_start": ["3"]}}), r"answer 'Rouen' at '3'; expected text and an integer offset"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": [""], "answer_start": [3]}}), r"answer '' at 3; expected text"),
        ("a.jsonl", jsonl({"text": "t", "answers": []}), r"id 'a-0': answers without a context; set columns\.text_b"),
        ("a.jsonl", jsonl(SPAN | {"context": " \n", "answers": []}), r"id 'a-0': the context is blank"),
        ("a.jsonl", jsonl(SPAN | {"question": " "}), r"id 'a-0': the question is blank"),
        # SQuAD files
        ("a.json", '{"data":\n [}', r"a\.json:2: malformed JSON at column 3"),
        ("a.json", b'{"data":\n "\xff"}', r"a\.json:2: byte 0xFF is not UTF-8"),
        ("a.json", squad([]).replace('"version"', '"data"'), r"a\.json: key 'data' stands twice"),
        ("a.json", "[]", r'a\.json: no list "data"; format "squad" expects'),
        ("a.json", '{"data": [{"paragraphs": [{"context": "c"}]}]}', r'a\.json data\[0\]\.paragraphs\[0\]: no list "qas"'),
        ("a.json", squad(["q"]), r"a\.json data\[0\]\.paragraphs\[0\]\.qas\[0\]: 'q' is not an object"),
        ("a.json", squad([qa(), qa("q2", "Caen")]), r"qas\[1\]: id 'q2': answer 'Caen' should stand at 11 of the context, which has 'Roue' there"),
        ("a.json", squad([qa(is_impossible=True)]), r"id 'q1': is_impossible is true, but the row has 1 answers"),
        ("a.json", squad([qa(answers=[], is_impossible=False)]), r"is_impossible is false, but the row has no answer"),
        ("a.json", squad([qa(answers=None)]), r"column 'answers' \(columns\.answers\) is null"),
        ("a.json", squad([qa(question="")]), r"column 'question' \(columns\.text_a\) is empty"),
        ("a.json", squad([qa(answers=[])], context=""), r"column 'context' \(columns\.text_b\) is empty"),
        ("a.json", squad([qa(text="", start=-1, is_impossible=False)]), r"is_impossible is false, but the row has no answer"),
        ("a.jsonl", jsonl(SPAN | {"answers": {"text": ["Rouen", ""], "answer_start": [3, -1]}}), r"answer '' at -1; expected text"),
        ("a.json", '{"data": [{"body": "b"}]}', r"a\.json data\[0\]: no column with a well-known name .* to one of 'body'"),
        ("a.json", squad([]), r"a\.json: the data set is empty"),
        # delimited files
        ("a.tsv", "text\tlabel\none\n", r"a\.tsv:2: found 1 fields, expected 2 as in the first line; set quoting true"),
        ("a.tsv", "text\tlabel\none\tx\ty\n", r"a\.tsv:2: found 3 fields, expected 2"),
        ("a.tsv", "text\tlabel\none\t\n", r"a\.tsv:2: label is ''"),
        ("a.tsv", b"text\tlabel\none\tx\ncaf\xe9\ty\n", r"a\.tsv:3: byte 0xE9 in .* is not UTF-8"),
        ("a.tsv", "text\tlabel\none\tx\n".encode("utf-16"), r"a\.tsv:1: header: byte 0xFF in .* is not UTF-8"),
        ("a.tsv", "text\ttext\none\tx\n", r"a\.tsv:1: the header names column 'text' twice"),
        ("a.csv", "text,label,,\none,x,,\ntwo,x,y,\n", r"a\.csv:3: 'y' stands beyond the last column that the header names; name that one too"),
        ("a.csv", ",,\none,x,\n", r"a\.csv:1: the header names no column; expected names, or set header false"),
        ("a.csv", "text,,,label\none,,,x\n", r"a\.csv:1: the header names column '' twice"),
        ("a.tsv", "body\tstars\none\tx\n", r"columns\.text_a to one of 'body', 'stars'"),
        ("a.tsv", "text\tlabel\n", r"a\.tsv: the data set is empty"),
        ("a.tsv", "", r"a\.tsv: the data set is empty"),
        ("a.csv", 'text,label\n"one,x\ntwo,y\n', r"a\.csv:2: malformed quoting .*set quoting false if quotes are literal"),
        ("a.csv", 'text,label\nok,x\n"one" two,x\n', r"a\.csv:3: malformed quoting"),
        ("a.csv", b'text,label\n"one\ncaf\xe9",x\n', r"a\.csv:2: byte 0xE9 in .* is not UTF-8"),
        # quoted values are shortened and escaped
        ("a.jsonl", jsonl({"text": "t", "label": [["\x1b[31m" + "x" * 500]]}), r"label is \['\\x1b\[31mx.{0,60}\.\.\..{0,40}; expected"),
    ],
)  # fmt: skip
def test_a_fault_is_named(write, name, content, message):
    with pytest.raises(RoadError, match=message) as caught:
        read(write(name, content), spec())
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_unlimited_lines_are_refused(write):
    row = '{"text": "' + "x" * LIMIT + '"}\n'
    file = write("a.jsonl", row + jsonl({"text": "after it"}))
    with pytest.raises(RoadError, match=r"a\.jsonl:1: longer than 16,777,216 characters"):
        read(file, spec())
    assert [(e.text_a, e.where) for e in read(file, spec(skip_bad=1)).examples] == [("after it", "a.jsonl:2")]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"text_a": "body"}, {}, r"a\.tsv:2: no column 'body' \(columns\.text_a\); found 'text', 'label'"),
        ({"text_a": 0}, {}, r"a\.tsv:2: no column 0 \(columns\.text_a\); found 'text', 'label'"),
        ({"text_a": "text"}, {"header": False}, r"a\.tsv:1: no column 'text' \(columns\.text_a\); found 0, 1"),
        ({}, {"header": False}, r"a\.tsv:1: no column with a well-known name .* to one of 0, 1"),
        ({"text_a": "text", "label": "stars"}, {}, r"no column 'stars' \(columns\.label\)"),
        ({"text_a": "text", "answers": "label"}, {}, r"answers without a context"),
        ({}, {"format": "xml"}, r"format 'xml' is unknown; set format to one of squad, jsonl, tsv, csv, conll, conllu, text, document, items, fields, lines, qasrl_gs, hub, disk"),
        ({}, {"format": "hub"}, r'format "hub" needs path: a hub name'),
        ({}, {"format": "disk"}, r'format "disk" needs path: a folder'),
        ({}, {"drop_labels": ["yes"]}, r"the data set is empty \(0 bad rows skipped, rows dropped by label: \{'yes': 1\}\)"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_file(write, columns, settings, message):
    with pytest.raises(RoadError, match=message):
        read(write("a.tsv", "text\tlabel\none\tyes\n"), spec(columns, **settings))


def test_missing_files_and_unknown_suffixes(tmp_path):
    with pytest.raises(RoadError, match=r"none\.tsv does not exist; expected a file"):
        read(str(tmp_path / "none.tsv"), spec())
    with pytest.raises(RoadError, match=r"file suffix '\.xlsx' is unknown; set format to one of squad, jsonl"):
        read(str(tmp_path / "rows.xlsx"), spec())


def test_skip_bad_is_a_limit(write):
    file = write("a.jsonl", jsonl(PAIR) + "{bad\n" + jsonl(PAIR) + "[]\n" + jsonl(PAIR))
    reading = read(file, spec(skip_bad=2))
    assert [example.where for example in reading.examples] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:5"]
    assert [message.split(": ")[0] for message in reading.skipped] == [f"{file}:2", f"{file}:4"]
    with pytest.raises(RoadError, match=r"a\.jsonl:4: .* \(bad row 2; skip_bad allows 1\)"):
        read(file, spec(skip_bad=1))


@pytest.mark.parametrize(
    "content", ['text,label\n"one" two,x\nthree,y\n', b"text,label\n\xff,x\nthree,y\n", "text,label\none\nthree,y\n"]
)
def test_reading_goes_on_after_a_skipped_row(write, content):
    examples = read(write("a.csv", content), spec(skip_bad=1)).examples
    assert [(e.text_a, e.where) for e in examples] == [("three", "a.csv:3")]


# -------------------------------------------------------------------------------------------- round trips

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
texts = anything.filter(bool)
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), min_size=1, max_size=30)


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=6))
@many
def test_json_lines_read_back_equal(write, rows):
    file = write(
        "a.jsonl", "".join(json.dumps(dict(zip("abl", row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
    )
    examples = read(file, spec({"text_a": "a", "text_b": "b", "label": "l"})).examples
    assert [(e.text_a, e.text_b, e.label) for e in examples] == rows


@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=6), st.sampled_from([("csv", ","), ("tsv", "\t")]))
@many
def test_quoted_files_read_back_equal(tmp_path, rows, kind):
    file = tmp_path / f"a.{kind[0]}"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=kind[1], quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("a", "b", "l"), *rows])
    examples = read(str(file), spec({"text_a": "a", "text_b": "b", "label": "l"}, quoting=True)).examples
    assert [(e.text_a, e.text_b, e.label) for e in examples] == rows
    breaks = [1 + "".join(row).count("\n") for row in rows]
    assert [e.where for e in examples] == [f"{file.name}:{2 + sum(breaks[:n])}" for n in range(len(rows))]


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
@many
def test_unquoted_files_read_back_equal(write, rows):
    file = write("a.tsv", "a\tb\tl\n" + "".join("\t".join(row) + "\n" for row in rows))
    examples = read(file, spec({"text_a": "a", "text_b": "b", "label": "l"})).examples
    assert [(e.text_a, e.text_b, e.label, e.where) for e in examples] == [
        (*row, f"a.tsv:{n}") for n, row in enumerate(rows, 2)
    ]


@given(anything, texts.filter(str.strip), anything)
@many
def test_offsets_are_code_points_of_any_text(write, before, answer, after):
    file = write("a.json", squad([qa(text=answer, start=len(before))], before + answer + after))
    example = read(file, spec()).examples[0]
    (found,) = example.answers
    assert example.text_b[found.start : found.start + len(found.text)] == found.text == answer


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "tsv", "csv", "squad"]))
@many
def test_no_bytes_end_in_anything_but_rows_or_one_error(write, content, format):
    try:
        read(write("a", content), spec({"text_a": 0}, format=format, header=False))
    except RoadError as error:
        assert str(error).isprintable()


# -------------------------------------------------------------------------------------------- disk and hub


@pytest.fixture
def saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": ["one", "two", "three"], "label": [1, 0, -1]}
    return datasets.Dataset.from_dict(rows, features=features), tmp_path / "saved"


def test_disk_gives_label_names_and_keeps_minus_one(saved):
    from datasets import DatasetDict

    rows, folder = saved
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(folder)
    reading = read("validation", spec(format="disk", path=str(folder), drop_labels=["-1"]))
    assert [(e.id, e.label, e.where) for e in reading.examples] == [
        ("validation-0", "good", "saved validation[0]"),
        ("validation-1", "bad", "saved validation[1]"),
    ]
    assert reading.dropped == {"-1": 1}
    with pytest.raises(RoadError, match=r"saved: no split 'test'; the folder has 'train', 'validation'"):
        read("test", spec(format="disk", path=str(folder)))


def test_a_lone_split_is_not_both_train_and_dev(saved):
    rows, folder = saved
    rows.save_to_disk(folder)
    assert len(read("train", spec(format="disk", path=str(folder))).examples) == 3
    with pytest.raises(RoadError, match=r"no split 'validation'; the folder has 'train'"):
        read("validation", spec(format="disk", path=str(folder)))


def test_disk_validates_offsets(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([{"id": "q", **SPAN}, {"id": "r", **SPAN, "context": "Rouen"}]).save_to_disk(
        tmp_path / "d"
    )
    reading = read("train", spec(format="disk", path=str(tmp_path / "d"), skip_bad=1))
    assert [(e.id, e.answers) for e in reading.examples] == [("q", (Answer("Rouen", 3),))]
    assert "train[1]: id 'r': answer 'Rouen' should stand at 3" in reading.skipped[0]


def test_folders_that_are_not_saved_data_sets(tmp_path):
    with pytest.raises(RoadError, match=r"none: no such folder; expected one that save_to_disk"):
        read("train", spec(format="disk", path=str(tmp_path / "none")))
    with pytest.raises(RoadError, match=r"not readable as a save_to_disk folder"):
        read("train", spec(format="disk", path=str(tmp_path)))


@pytest.mark.parametrize("path", ["../up", "a/b/c", "org/..", "/etc", "s3://b/c", "a b", "json", "pandas"])
def test_hub_names_are_names(path):
    with pytest.raises(RoadError, match=r"expected a name like 'org/name', or use a local folder"):
        read("train", spec(format="hub", path=path))


def test_a_local_folder_is_never_read_for_a_hub_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RoadError, match=r"hub data set 'org/name' is also a local path here"):
        read("train", spec(format="hub", path="org/name"))


CARD = """---
dataset_info:
  features:
  - {name: premise, dtype: string}
  - {name: hypothesis, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': entailment, '1': neutral}}}
---
"""
CLIENT = """
import json, sys, time
from road_ds.config.road import DatasetSpec
from road_ds.data.readers import RoadError, read
time.sleep = lambda seconds: None  # the client waits 23 s between its attempts to reach a hub
for path, config, split in json.loads(sys.argv[1]):
    try:
        rows = read(split, DatasetSpec(task="t", format="hub", path=path, config=config)).examples
        print(json.dumps([[row.id, row.text_a, row.label, row.where] for row in rows]))
    except RoadError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Asks the stand-in hub for (path, config, split) each, in a process of its own: rows, or the error's text."""
    root = tmp_path_factory.mktemp("hub")
    folder = root / "datasets" / "org" / "pairs"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split in ("train", "test"):
        rows = ({"premise": f"{split} {n}", "hypothesis": "h", "label": label} for n, label in enumerate((1, 0, -1)))
        (folder / f"{split}.jsonl").write_text(jsonl(*rows))
    (root / "datasets" / "org" / "closed").mkdir()
    (root / "datasets" / "org" / "closed" / ".gated").touch()

    def ask(*wanted, url=None, **environment):
        environment = client_environment(url or served, root / "home") | {"PYTHONPATH": str(ROOT)} | environment
        command = [sys.executable, "-c", CLIENT, json.dumps(wanted)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with serve(root) as served:
        yield ask


WITHOUT = '. Without the hub: use a local folder (save_to_disk, then format "disk" with path set to it) or a JSONL, TSV or CSV file'


def test_hub(hub):
    rows, split, config, unknown, closed = hub(
        ("org/pairs", None, "test"),
        ("org/pairs", None, "nope"),
        ("org/pairs", "nope", "train"),
        ("org/none", None, "train"),
        ("org/closed", None, "train"),
    )
    assert json.loads(rows) == [
        ["test-0", "test 0", "neutral", "org/pairs test[0]"],
        ["test-1", "test 1", "entailment", "org/pairs test[1]"],
        ["test-2", "test 2", "-1", "org/pairs test[2]"],
    ]
    assert "'org/pairs', split 'nope': ValueError: Unknown split \"nope\". Should be one of ['train', 'test']" in split
    assert (
        "configuration 'nope', split 'train': ValueError: BuilderConfig 'nope' not found. Available: ['default']"
        in config
    )
    assert "'org/none', split 'train': the hub has no such data set, or it is private; check the name" in unknown
    assert "'org/closed', split 'train': the hub says that it is gated; ask for access" in closed
    assert all(error.endswith(WITHOUT) for error in (split, config, unknown, closed))


def test_hub_unreachable_and_offline(hub):
    (unreachable,) = hub(("org/other", None, "train"), url="http://127.0.0.1:9")
    assert unreachable == (
        "hub data set 'org/other', split 'train': the hub cannot be reached; check the network and HF_ENDPOINT"
        + WITHOUT
    )
    (offline,) = hub(("org/other", None, "train"), HF_HUB_OFFLINE="1")
    assert "offline mode is on (HF_HUB_OFFLINE) and the cache does not have it; turn it off" in offline


@pytest.mark.parametrize(
    ("content", "settings", "hinted"),
    [
        ("yes\tthis is a whole text\nno\tother text here\n", {}, True),
        ("5\tgood\n1\tbad\n", {}, True),
        ("body\tstars\nfine\tx\n", {}, False),
        ("body\tstars\nfine\tx\n", {"columns": {"text_a": 0}}, True),
    ],
)
def test_a_header_that_looks_like_a_row_is_named(tmp_path, content, settings, hinted):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(RoadError) as raised:
        read(str(tmp_path / "a.tsv"), DatasetSpec(task="t", train="a", **settings))
    assert ('set "header": false and give columns by position' in str(raised.value)) is hinted


def test_half_a_pair_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Where?", "paragraph": "In Oslo."}\n')
    with pytest.raises(RoadError, match=r"'question' goes with 'context', which is not there\); .* and text_b for"):
        read(str(tmp_path / "a.jsonl"), DatasetSpec(task="t", train="a"))
