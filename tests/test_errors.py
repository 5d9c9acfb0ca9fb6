"""What a user reads: bounded, printable, and all of it at once."""

import pytest

from road_ds.errors import LINE, LINES, Faults, RoadError, misspelt, nearest


def test_a_message_is_bounded_and_cannot_write_to_the_terminal():
    assert str(RoadError("a\x1b[31m\ud800\tb\nc é 猫")) == "a\\x1b[31m\\ud800\\tb\nc é 猫"
    long = str(RoadError("x" * 100_000))
    assert long == "x" * LINE + "..." and str(RoadError(long)) == long
    many = str(RoadError("\n".join(map(str, range(1000)))))
    assert many.splitlines()[-2:] == ["... (961 lines more)", "999"] and len(many.splitlines()) == LINES
    assert str(RoadError(many)) == many


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
