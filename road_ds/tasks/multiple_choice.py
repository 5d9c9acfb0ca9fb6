"""One of the choices of a question."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForMultipleChoice

from road_ds.common.errors import RoadError
from road_ds.data.batch import IGNORED, Feature
from road_ds.tasks.base import Task
from road_ds.tasks.labels import beside
from road_ds.tasks.outputs import Outputs


@dataclass(frozen=True)
class Chosen:
    """The likeliest choice: its place, key and text; probabilities: of every choice, by key."""

    place: int
    key: str
    text: str
    probabilities: Mapping[str, float]


class MultipleChoice(Task):
    """One of the choices of a question: a softmax over them, however many they are.

    A feature is a question: a sequence for each choice, text_a and behind it text_b and the choice. Rows of logits: one per
    question, whose classes are its choices. So whatever deals out features never parts the choices of a question.
    """

    type: Literal["multiple_choice"]

    model: ClassVar[Any] = AutoModelForMultipleChoice
    hub_task: ClassVar[str | None] = "multiple-choice"
    asked: ClassVar[str] = 'ask({"question": "Who ...?", "choices": ["...", "..."]})'
    headline: ClassVar[str] = "accuracy"
    row_metric: ClassVar[str] = "accuracy"
    several_sequences: ClassVar[bool] = True

    def head_settings(self):
        return {}

    def labelled(self, example):
        return example.choices is not None and example.label is not None

    def lacking(self, example):
        return ("choices", "columns.choices") if example.choices is None else ("label", "columns.label")

    def encode(self, examples, tokenizer, first=0):
        firsts, seconds = [], []
        for example in examples:
            if example.choices is None:
                raise RoadError(
                    f"{example.where}: the question has no choices: expected rows of a file with a column of them (columns.choices)"
                )
            start = "" if example.text_b is None else f"{example.text_b} "
            firsts += [example.text_a] * len(example.choices)
            seconds += [start + choice.text for choice in example.choices]
        options = {"truncation": True, "max_length": self.max_length, "return_token_type_ids": True}
        encoded = tokenizer(firsts, seconds, **options)
        bounds = pairwise(accumulate((len(example.choices) for example in examples), initial=0))
        for number, (example, (begin, end)) in enumerate(zip(examples, bounds, strict=True)):
            ids, types = (encoded[name][begin:end] for name in ("input_ids", "token_type_ids"))
            target, lengths = [self.label(example)], [len(row) for row in ids]
            yield Feature(list(chain(*ids)), list(chain(*types)), target, first + number, sequences=lengths)

    def label(self, example) -> int:
        """The place of the right choice, IGNORED where it is not known. RoadError where the label is none of them."""
        if example.label is None:
            return IGNORED
        keys = [choice.key for choice in example.choices]
        if str(example.label) not in keys:
            raise RoadError(
                f"{example.where}: label {example.label!r} is none of the row's choices ({', '.join(keys)}); rename it with "
                "label_map, or leave such rows out with drop_labels"
            )
        return keys.index(str(example.label))

    def inputs(self, tensors):
        return {name: None if value is None else value[None] for name, value in tensors.items()}

    def outputs(self, head, batch):
        logits = head.logits.flatten()
        counts = batch.sequences or (1,) * len(logits)
        padded = pad_sequence(logits.split(counts), batch_first=True)  # [questions, most choices]
        return Outputs(padded, torch.tensor(counts, device=logits.device))

    def predict(self, examples, features, logits):
        results = []
        for example, rows in zip(examples, logits, strict=True):
            shares = np.exp(rows[0].astype(np.float64) - rows[0].max())
            place, choices = int(shares.argmax()), example.choices
            named = dict(zip((choice.key for choice in choices), (shares / shares.sum()).tolist(), strict=True))
            results.append(Chosen(place, choices[place].key, choices[place].text, named))
        return results

    def score(self, examples, predictions):
        return {"accuracy": 100 * float(np.mean(self.row_scores(examples, predictions)))}

    def row_scores(self, examples, predictions):
        return [float(self.label(e) == p.place) for e, p in zip(examples, predictions, strict=True)]

    def baseline(self, examples):
        """Of always taking the choice in the place that is right most often."""
        places = Counter(map(self.label, examples))
        return {"accuracy": 100 * max(places.values()) / len(examples)}

    def describe(self, prediction):
        return beside({"choice": prediction.key, "text": prediction.text}, prediction.probabilities)

    def golds(self, example):
        return [str(example.label)]

    def matched(self, example, said):
        return [(str(example.label), said["choice"])]

    def certainty(self, said):
        return max(value for value in said.values() if isinstance(value, float))
