"""Entities: runs of words that tags mark, found as conlleval and seqeval's default mode find them, and how well they are told."""

from collections.abc import Collection, Iterator, Sequence

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "S")  # begins, inside, ends, single


def mark_entities(labels: Collection[str]) -> bool:
    """Whether tags mark entities: each is O, or a prefix with the kind of entity behind it ("B-PER")."""
    marks = [label for label in labels if label != OUTSIDE]
    return bool(marks) and all(label[0] in PREFIXES and label[1:2] in ("", "-") for label in marks)


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(kind, first word, behind the last word) of each entity.

    A word goes on with the entity before it where it is I or E, that one's tag B or I, and both of one kind; any other word
    that is not O begins one, whatever its prefix.
    """
    begun, before, kind = 0, OUTSIDE, ""
    for at, tag in enumerate([*tags, OUTSIDE]):
        prefix, own = tag[:1], tag[1:].partition("-")[2] or "_"
        goes_on = prefix in ("I", "E") and before in ("B", "I") and own == kind
        if before != OUTSIDE and not goes_on:
            yield kind, begun, at
        if not goes_on:
            begun = at
        before, kind = prefix, own


def entity_scores(golds: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall over all entities of all rows, in percent; an entity is right with its kind and both its ends."""
    right = said = there = 0
    for gold, prediction in zip(golds, predictions, strict=True):
        own, found = set(entities(gold)), set(entities(prediction))
        right, said, there = right + len(own & found), said + len(found), there + len(own)
    precision, recall = right / max(1, said), right / max(1, there)
    f1 = 2 * right / max(1, said + there)
    return {"f1": 100 * f1, "precision": 100 * precision, "recall": 100 * recall}
