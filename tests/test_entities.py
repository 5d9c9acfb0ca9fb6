"""Entities against seqeval on random tags, well-formed or not, and by hand."""

import random
import warnings

import pytest
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities

from road_ds.tasks.entities import entities, entity_scores, mark_entities

IOB = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-MISC"]
ALL = [*IOB, "E-PER", "S-PER", "S-LOC", "E-LOC", "B", "I", "B-a-b", "I-a-b", "I-b"]


@pytest.mark.parametrize("alphabet", [IOB, ALL])
def test_entities_and_scores_are_seqevals(alphabet):
    generator = random.Random(1)
    for _ in range(300):
        rows = [generator.randrange(1, 12) for _ in range(10)]
        golds, said = ([generator.choices(alphabet, k=n) for n in rows] for _ in range(2))
        said = [g if generator.random() < 0.5 else s for g, s in zip(golds, said, strict=True)]
        for tags in (*golds, *said):
            expected = [(kind, first, last + 1) for kind, first, last in get_entities(tags)]
            assert list(entities(tags)) == expected, tags
        found = entity_scores(golds, said)
        with warnings.catch_warnings(action="ignore"):
            expected = [score(golds, said) for score in (f1_score, precision_score, recall_score)]
        assert [found[key] for key in ("f1", "precision", "recall")] == pytest.approx([100 * e for e in expected])


def test_nothing_there_and_nothing_said_is_no_score():
    assert entity_scores([["O", "O"]], [["O", "O"]]) == {"f1": 0, "precision": 0, "recall": 0}
    assert entity_scores([[]], [[]]) == {"f1": 0, "precision": 0, "recall": 0}


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("I-PER I-PER O I-PER", [("PER", 0, 2), ("PER", 3, 4)]),  # no B: begins all the same
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("S-PER E-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-creative-work I-creative-work", [("creative-work", 0, 2)]),
    ],
)
def test_entities_by_hand(tags, found):
    assert list(entities(tags.split())) == found


def test_which_tags_mark_entities():
    assert mark_entities(["O", "B-PER", "I-PER"]) and mark_entities(["B", "I", "O"])
    assert not mark_entities(["NOUN", "VERB"]) and not mark_entities(["O"]) and not mark_entities(["O", "BAD", "I-X"])
