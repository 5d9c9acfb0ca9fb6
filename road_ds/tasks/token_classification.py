"""A tag for each word of a text: named entities, parts of speech."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from transformers import AutoModelForTokenClassification

from road_ds.common.errors import RoadError
from road_ds.common.log import counted
from road_ds.data.batch import IGNORED, Feature
from road_ds.data.readers import Example
from road_ds.data.words import word_places
from road_ds.tasks.base import Task
from road_ds.tasks.entities import OUTSIDE, entities, entity_scores, mark_entities
from road_ds.tasks.labels import LabelNames, head_labels, position
from road_ds.tasks.outputs import Outputs


@dataclass(frozen=True)
class Tagged:
    """text; places: the characters of its words; tags: of each word, None where the model has not read it."""

    text: str
    places: list[tuple[int, int]]
    tags: list[str | None]


class TokenClassification(Task):
    """A tag for each word of a text, read off the word's first token: a row of logits for each word.

    A word whose first token lies beyond `max_length`, or that is no token at all, has no row: it is neither learned from nor
    told, and scored as O, or as wrong where the task has no such tag.
    """

    type: Literal["token_classification"]
    labels: LabelNames = []

    model: ClassVar[Any] = AutoModelForTokenClassification
    hub_task: ClassVar[str | None] = "token-classification"
    first_said: ClassVar[str | None] = "tags"
    row_metric: ClassVar[str] = "accuracy"

    @property
    def headline(self) -> str:  # type: ignore[override]
        """F1 over entities where the tags mark some."""
        return "f1" if mark_entities(self.labels) else "accuracy"

    @property
    def rows_per_feature(self):
        return None

    def head_settings(self):
        return head_labels(self.labels)

    def reads(self, pairs):
        return pairs is False

    def lacking(self, example):
        return "tags", "columns.label"

    def encode(self, examples, tokenizer, first=0):
        for example in examples:
            if example.text_b is not None:
                raise RoadError(
                    f"{example.where}: two texts, of which words have tags in one: set columns.text_b to null"
                )
        options = {"truncation": True, "max_length": self.max_length, "return_token_type_ids": True}
        encoded = tokenizer([e.text_a for e in examples], return_offsets_mapping=True, **options)
        for number, example in enumerate(examples):
            places = word_places(example.text_a)
            words = first_tokens(places, np.array(encoded["offset_mapping"][number]))
            tags = self.tags(example, len(places))
            labels = [tag for tag, token in zip(tags, words.tolist(), strict=True) if token >= 0]
            ids, types = encoded["input_ids"][number], encoded["token_type_ids"][number]
            yield Feature(ids, types, np.array(labels, dtype=np.int64), first + number, words=words)

    def tags(self, example: Example, words: int) -> list[int]:
        """The target of each word, IGNORED where an example has none. RoadError where it has not one for each word."""
        tags = example.label
        if tags is None:
            return [IGNORED] * words
        if not isinstance(tags, tuple):
            raise RoadError(
                f"{example.where}: tags are {tags!r}; expected a list with one for each word, or set label_separator to what "
                "stands between them"
            )
        if len(tags) != words:
            raise RoadError(
                f"{example.where}: {counted(len(tags), 'tag')} for {counted(words, 'word')} ({example.text_a[:60]!r}); expected one for each word: "
                "words are a list, or a text in which spaces part them; set columns.text_a and columns.label to the two columns"
            )
        return [position(tag, self.labels, example.where) for tag in tags]

    def outputs(self, head, batch):
        logits = head.logits.flatten(0, 1)
        return Outputs(logits if batch.words is None else logits.index_select(0, batch.words))

    def aligned(self, own, other, logits):
        rows = np.cumsum(np.asarray(other.words) >= 0) - 1
        wanted = np.flatnonzero(np.asarray(own.words) >= 0)
        lacking = wanted[np.asarray(other.words)[wanted] < 0]
        if len(lacking):
            raise RoadError(
                f"its tokenizer has no token for the word {lacking[0] + 1}, which is read here (behind max_length, or none at "
                "all): raise the task's max_length, or mend the row"
            )
        return logits[rows[wanted]]

    def predict(self, examples, features, logits):
        found = []
        for example, feature, rows in zip(examples, features, logits, strict=True):
            said = iter(rows.argmax(1).tolist())
            tags = [self.labels[next(said)] if token >= 0 else None for token in feature.words]
            found.append(Tagged(example.text_a, word_places(example.text_a), tags))
        return found

    def score(self, examples, predictions):
        """Accuracy over words; where tags mark entities their F1, precision and recall; unread: the words not read, if any."""
        golds, said = [e.label for e in examples], [known(p.tags) for p in predictions]
        words = [(g, s) for gold, own in zip(golds, said, strict=True) for g, s in zip(gold, own, strict=True)]
        scores = entity_scores(golds, said) if mark_entities(self.labels) else {}
        scores["accuracy"] = 100 * float(np.mean([g == s for g, s in words]))
        unread = sum(tag is None for p in predictions for tag in p.tags)
        return {**scores, "unread": float(unread)} if unread else scores

    def row_scores(self, examples, predictions):
        return [
            float(np.mean([g == s for g, s in zip(e.label, known(p.tags), strict=True)]))
            for e, p in zip(examples, predictions, strict=True)
        ]

    def baseline(self, examples):
        """Those of the commonest tag for every word."""
        ((usual, _),) = Counter(tag for example in examples for tag in example.label).most_common(1)
        return self.score(examples, [Tagged("", [], [usual] * len(example.label)) for example in examples])

    def describe(self, prediction):
        text, places = prediction.text, prediction.places
        spans = entities(known(prediction.tags)) if mark_entities(self.labels) else ()
        return {
            "words": [text[start:end] for start, end in places],
            "tags": prediction.tags,
            "spans": [
                {"label": kind, "text": text[places[first][0] : places[end - 1][1]], "start": places[first][0], "end": places[end - 1][1]}
                for kind, first, end in spans
            ],
        }  # fmt: skip

    def golds(self, example):
        return example.label

    def matched(self, example, said):
        return [*zip(example.label, known(said["tags"]), strict=True)]


def first_tokens(places: Sequence[tuple[int, int]], offsets: np.ndarray) -> np.ndarray:
    """The first token of each word, [words], -1 where it has none.

    places: the characters of each word; offsets: those of each token, [tokens, 2], empty for one that is no text.
    """
    starts, ends = np.array(places).T
    tokens = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    at = np.searchsorted(offsets[tokens, 1], starts, side="right")  # the first token that ends behind the word's start
    inside = at < len(tokens)
    inside[inside] = offsets[tokens[at[inside]], 0] < ends[inside]
    found = np.full(len(places), -1, dtype=np.int32)
    found[inside] = tokens[at[inside]]
    return found


def known(tags: Sequence[str | None]) -> list[str]:
    """The tags, O for words that were not read."""
    return [OUTSIDE if tag is None else tag for tag in tags]
