"""What a user reads of an error: the fault, whatever it quotes."""

import json

import pytest

from road_ds.errors import LINE, RoadError, legible, readable


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


def test_what_is_a_users_to_mend(tmp_path):
    with pytest.raises(OSError) as gone:
        (tmp_path / "none").read_text()
    assert readable(gone.value) == f"{tmp_path}/none: No such file or directory"
    assert readable(RoadError("why")) == "why"
    assert readable(OSError("no file")) == readable(ValueError("x")) == ""
