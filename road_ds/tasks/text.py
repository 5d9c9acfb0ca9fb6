"""What tasks on one text or a pair share: one row of logits a feature."""

from typing import Any, ClassVar

from transformers import AutoModelForSequenceClassification

from road_ds.common.errors import RoadError
from road_ds.data.batch import Feature
from road_ds.data.readers import Example
from road_ds.tasks.base import Task
from road_ds.tasks.outputs import Outputs


class TextTask(Task):
    """What classification and regression share: one text or a pair, one row of logits per feature.

    pairs: whether the head reads two texts or one; None: either.
    """

    pairs: bool | None = None

    model: ClassVar[Any] = AutoModelForSequenceClassification
    hub_task: ClassVar[str | None] = "text-classification"

    def reads(self, pairs):
        return self.pairs in (None, pairs)

    def trained_on(self, pairs):
        return self.model_copy(update={"pairs": next(iter(pairs))}) if len(set(pairs)) == 1 else self

    def encode(self, examples, tokenizer, first=0):
        options = {"truncation": True, "max_length": self.max_length, "return_token_type_ids": True}
        features: dict[int, tuple[list[int], list[int]]] = {}
        for paired in (False, True):  # a tokenizer takes lone texts or pairs, and a row is one or the other by itself
            rows = [number for number, e in enumerate(examples) if (e.text_b is not None) == paired]
            if not rows:
                continue
            if not self.reads(paired):
                said = "two texts, the head reads one" if paired else "one text, the head reads two: give both"
                raise RoadError(f"{examples[rows[0]].where}: {said}")
            second = [examples[row].text_b for row in rows] if paired else None
            encoded = tokenizer([examples[row].text_a for row in rows], second, **options)
            features |= zip(rows, zip(encoded["input_ids"], encoded["token_type_ids"], strict=True), strict=True)
        for number, example in enumerate(examples):
            ids, types = features[number]
            yield Feature(ids, types, self.targets(example), first + number)

    def targets(self, example: Example) -> list[int | float]:
        """The target of each row of logits."""
        return [self.label(example)]

    def label(self, example: Example) -> int | float:
        """The target of an example, IGNORED where it has none."""
        raise NotImplementedError

    def outputs(self, head, batch):
        return Outputs(head.logits)
