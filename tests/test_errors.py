"""What a user reads: bounded, printable, and all of it at once."""

import pytest

from road_ds.errors import LINE, LINES, Faults, RoadError


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
