"""What every task answers: how an example becomes features, which head reads them, what its logits say."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from road_ds.config.settings import Strict
from road_ds.data.batch import Batch, Feature
from road_ds.data.readers import Example
from road_ds.tasks.outputs import Outputs

Scores = dict[str, float]
Golds = Sequence[str | float]  # classes by name, or values
NONE = "(none)"  # beside a class that was missed, or said of a row without it


class Task(Strict):
    """What a task answers. Subclasses are the settings too: one block of `road.tasks`."""

    type: str
    max_length: Annotated[int, Field(ge=8, le=10**6)] = 128

    model: ClassVar[Any]
    headline: ClassVar[str]
    row_metric: ClassVar[str]
    over_tokens: ClassVar[bool] = False  # the classes of a row of logits are the feature's tokens
    several_sequences: ClassVar[bool] = False  # a feature has more than one, for each of which there is a logit
    numbers_per_label: ClassVar[int] = 1  # of a feature's logits; where the rows are labels, all classes of one
    continuous: ClassVar[bool] = False
    supervised: ClassVar[bool] = True  # labels or answers are read
    truncates: ClassVar[bool] = True  # a row of more than max_length tokens loses its end
    hub_task: ClassVar[str | None] = None  # what a hub calls it
    asked: ClassVar[str] = (
        'ask("a text")  # or two, or columns by their names; lists of them are batches'  # once loaded
    )
    first_said: ClassVar[str | None] = (
        None  # of a described prediction, what a page shows first; None: what stands first
    )
    errors: ClassVar[bool] = False  # a row's score is an error: the lower, the better

    @property
    def rows_per_feature(self) -> int | None:
        """Rows of logits that a feature gives; None: each as many as it has labels."""
        return 1

    def head_settings(self) -> dict[str, Any]:
        """What the head's Hugging Face configuration holds."""
        raise NotImplementedError

    def labelled(self, example: Example) -> bool:
        """Whether an example can be trained on and scored."""
        return example.label is not None

    def lacking(self, example: Example) -> tuple[str, str]:
        """What an example that is not labelled lacks, and the setting that names the column of it."""
        return "label", "columns.label"

    def reads(self, pairs: bool | None) -> bool:
        """Whether the head reads rows that are pairs of texts, lone ones (False), or some of each (None)."""
        return True

    def trained_on(self, pairs: Collection[bool | None]) -> "Task":
        """The task with what its head's rows were: for each data set whether they are pairs, None where some are."""
        return self

    def encoding(self) -> dict[str, Any]:
        """The settings that decide on the features of an example."""
        return self.model_dump()

    def encode(self, examples: Sequence[Example], tokenizer: Any, first: int = 0) -> Iterator[Feature]:
        """The features of examples, the first of which has the number `first`. RoadError for a label that is not allowed."""
        raise NotImplementedError

    def generated_by(self) -> float | str | None:
        """What changes the rows before the encoder reads them: a generator's width as a share of the encoder's, or its name."""
        return None

    def reading(self, tokenizer: Any) -> "Task":
        """The task with what it has to know of the tokenizer beyond its rows."""
        return self

    def counting(self, labels: Callable[[], Mapping[int, int]]) -> "Task":
        """The task with what it has to know of how often each label, by its number, stands in the rows that it learns from."""
        return self

    def draw(self, batch: Batch, key: Sequence[int], lengths: np.ndarray) -> Batch:
        """The batch with what is drawn anew each time its rows are seen, or looked up for them, on the host; most tasks add nothing.

        key: whole numbers that decide on the draws beside a row's own number; lengths: tokens of the rows of the whole pass.
        """
        return batch

    def inputs(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """What the head's model takes, from tensors of [sequences, ...]."""
        return tensors

    def outputs(self, head: Any, batch: Batch) -> Outputs:
        """The logits of a batch, from what the head's model returned."""
        raise NotImplementedError

    def aligned(self, own: Feature, other: Feature, logits: np.ndarray) -> np.ndarray:
        """The logits of another tokenizer's feature of the same row, for the rows of logits of `own`. RoadError where it lacks some."""
        return logits

    def predict(
        self, examples: Sequence[Example], features: Sequence[Feature], logits: Sequence[np.ndarray]
    ) -> list[Any]:
        """One prediction per example; logits: per feature, [rows, classes]."""
        raise NotImplementedError

    def score(self, examples: Sequence[Example], predictions: Sequence[Any]) -> Scores:
        """The metrics of predictions, in percent unless the name says otherwise."""
        raise NotImplementedError

    def row_scores(self, examples: Sequence[Example], predictions: Sequence[Any]) -> list[float]:
        """`row_metric` of each prediction. Where it is the headline too: a share of 1, whose mean in percent is that."""
        raise NotImplementedError

    def baseline(self, examples: Sequence[Example]) -> Scores:
        """The same metrics for the best answer that ignores the text."""
        raise NotImplementedError

    def published(self, metric: str, examples: Sequence[Example], predictions: Sequence[Any]) -> Scores:
        """The scores that come with a data set's own metric, where `score` does not have it."""
        return {}

    def describe(self, prediction: Any) -> dict[str, Any]:
        """A prediction as plain values, for people and JSON."""
        raise NotImplementedError

    # What a run's report shows of rows beyond texts and scores. What a task does not say is left out there.

    def golds(self, example: Example) -> Golds:
        """What is right for an example, as classes or values."""
        return ()

    def matched(self, example: Example, said: Mapping[str, Any]) -> Sequence[tuple[str | float, str | float]]:
        """What is right for an example beside what a described prediction says, in pairs of classes (or NONE) or values."""
        return ()

    def certainty(self, said: Mapping[str, Any]) -> float | None:
        """How sure a described prediction is of itself, for an order of rows; None where the task cannot tell."""
        return None
