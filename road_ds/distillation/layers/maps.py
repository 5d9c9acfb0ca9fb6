"""Which layers of a student stand beside which of a teacher, counted from 1."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from road_ds.common.errors import RoadError
from road_ds.config.settings import Count

Pair = tuple[int, int]  # a layer of the student, a layer of the teacher
Pairs = Annotated[
    list[Annotated[list[Count], Field(min_length=2, max_length=2)]], Field(min_length=1)
]  # as JSON has them
WHERE = "road.distill.layers"


def uniform(student: int, teacher: int) -> list[Pair]:
    """12 with 24, 11 with 22, ... Of a shallower teacher a layer stands for several of the student's, none for its embeddings."""
    return [(layer, max(1, round(layer * teacher / student))) for layer in range(1, student + 1)]


def top(student: int, teacher: int) -> list[Pair]:
    """The last layers alone."""
    return [(student, teacher)]


def skip(student: int, teacher: int) -> list[Pair]:
    """As `uniform` without the last layers: 1 to 5 with 2, 4, 6, 8, 10 of 12 (PKD-Skip)."""
    below_the_last(student, teacher, 1)
    return [(own, min(theirs, teacher - 1)) for own, theirs in uniform(student, teacher)[:-1]]


def last(student: int, teacher: int) -> list[Pair]:
    """The highest without the last: 1 to 5 with 7, 8, 9, 10, 11 of 12 (PKD-Last)."""
    below_the_last(student, teacher, student - 1)
    return [(layer, teacher - student + layer) for layer in range(1, student)]


def chosen(
    how: str | list[list[int]], named: Mapping[str, Callable[[int, int], list[Pair]]], student: int, teacher: int
) -> list[Pair]:
    """The pairs that a setting stands for: by one of the names, or given one by one."""
    return named[how](student, teacher) if isinstance(how, str) else given(how, student, teacher)


def given(pairs: list[list[int]], student: int, teacher: int) -> list[Pair]:
    """The pairs of a setting. RoadError for a layer that does not exist."""
    for own, theirs in pairs:
        if own > student or theirs > teacher:
            raise RoadError(
                f"{WHERE}.map: got [{own}, {theirs}]; expected [layer of the student, layer of the teacher], counted from 1: "
                f"the student has {student}, the teacher {teacher}"
            )
    return [(own, theirs) for own, theirs in pairs]


def below_the_last(student: int, teacher: int, least: int) -> None:
    """RoadError where a method that leaves the last layers out has none to compare, or fewer than `least` of a teacher."""
    if student < 2 or teacher - 1 < max(1, least):
        raise RoadError(
            f"{WHERE}: the last layers are left out, and below them a student of {student} has {student - 1} and a teacher of "
            f"{teacher} has {teacher - 1}: expected one or more of the student and {max(1, least)} or more of the teacher"
        )


def buckets(student: int, teacher: int, overlapping: bool) -> list[list[int]]:
    """The layers of a teacher that each layer of a student looks at: equal shares from below, 12 for 4 as 1-3, 4-6, 7-9, 10-12.

    overlapping: and the neighbouring layer on either side, 1-4, 3-7, 6-10, 9-12. RoadError where a bucket would be empty.
    """
    if teacher < student:
        raise RoadError(
            f"{WHERE}.buckets: {teacher} layers of a teacher cannot be shared out to {student} of the student: take a deeper "
            "teacher, or another method"
        )
    more = 1 if overlapping else 0
    bounds = [layer * teacher // student for layer in range(student + 1)]
    return [list(range(max(1, first + 1 - more), min(teacher, end + more) + 1)) for first, end in pairwise(bounds)]
