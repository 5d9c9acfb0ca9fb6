"""What a user reads of an error: the fault, whatever it quotes; bounded, and all of it at once."""

import json

import pytest

from road_ds.common.errors import LINE, LINES, Faults, RoadError, legible, misspelt, nearest, readable


def test_control_characters_do_not_reach_the_terminal():
    text = "\x1b[31mred\x1b]0;title\x07 \x9b2J \r\x7f\tübung 🇳🇴\n"
    shown = legible(text)
    assert shown == "\\u001b[31mred\\u001b]0;title\\u0007 \\u009b2J \\u000d\\u007f\tübung 🇳🇴\n"
    assert str(RoadError(text)) == shown == str(RoadError(shown))
    assert json.loads(legible(json.dumps(text, ensure_ascii=False))) == text


def test_a_long_line_keeps_its_beginning_and_its_end():
    error = str(RoadError(f"rows.jsonl:1: label '{'x' * 100_000}' is none of the task's\nset label_map"))
    first, second = error.split("\n")
    assert first.startswith("rows.jsonl:1: label 'xxx") and first.endswith("xxx' is none of the task's")
    assert "characters left out" in first and len(first) <= LINE and second == "set label_map"
    assert str(RoadError(error)) == error


def test_many_lines_keep_the_last():
    many = str(RoadError("\n".join(map(str, range(1000)))))
    assert many.splitlines()[-2:] == ["... (961 lines more)", "999"] and len(many.splitlines()) == LINES
    assert str(RoadError(many)) == many
    assert str(RoadError("a\ud800b")) == "a\\ud800b"


def test_what_is_a_users_to_mend(tmp_path):
    with pytest.raises(OSError) as gone:
        (tmp_path / "none").read_text()
    assert readable(gone.value) == f"{tmp_path}/none: No such file or directory"
    assert readable(RoadError("why")) == "why"
    assert readable(OSError("no file")) == readable(ValueError("x")) == ""


def test_faults_are_raised_together_each_once():
    faults = Faults()
    faults.end()
    for text in ("a", "b", "a"):
        with faults.caught():
            raise RoadError(text)
    faults.add("c")
    with pytest.raises(RoadError, match=r"^a\nb\nc$"):
        faults.end()
    with pytest.raises(ValueError), Faults().caught():
        raise ValueError


def test_a_lone_fault_is_raised_as_it_was():
    error, faults = RoadError("a"), Faults()
    with faults.caught():
        raise error
    with pytest.raises(RoadError) as raised:
        faults.end()
    assert raised.value is error


def test_the_nearest_word():
    assert nearest("text", ["id", "text_a", "text_b", "label"]) == "; did you mean 'text_a'?"
    assert nearest("stepz", ["keep", "steps"]) == "; did you mean 'steps'?"
    assert nearest("x", ["keep", "steps"]) == nearest("", []) == ""


@pytest.mark.parametrize(
    ("value", "known", "meant"),
    [
        ("not_entailment", ["entailment", "neutral", "contradiction"], None),
        ("unacceptable", ["acceptable"], None),
        ("amoral", ["moral"], None),
        ("-1", ["0", "1"], None),
        ("2", ["0", "1"], None),
        ("no", ["yes", "non"], None),
        ("A", ["B", "C"], None),
        ("1.0", ["0", "1"], "1"),
        ("yess", ["no", "yes"], "yes"),
        ("Not Duplicate", ["duplicate", "not_duplicate"], "not_duplicate"),
        ("entailmnet", ["entailments", "entailment"], None),
        ("entailmant", ["neutral", "entailment"], "entailment"),
        ("", ["neutral"], None),
        ("?", ["!", "x"], None),
    ],
)
def test_a_value_of_its_own_is_not_taken_for_another(value, known, meant):
    assert misspelt(value, known) == (f"; did you mean {meant!r}?" if meant else "")
