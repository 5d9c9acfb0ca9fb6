"""Tasks: how an example becomes features, which head reads them, and what its logits say.

Everything else is blind to the task. Every head gives logits of one shape, [rows, classes], so one loss serves all.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from road_ds import metrics
from road_ds.config import Count, RoadConfig, Strict, sound, validated
from road_ds.data.features import IGNORED, Batch, Feature
from road_ds.data.readers import Example
from road_ds.errors import Faults, RoadError, misspelt, nearest
from road_ds.objectives import Outputs
from road_ds.spans import Answered, PairTemplate, answer, token_range, trimmed, windows
from road_ds.strict_json import quote
from road_ds.trainer_words import NO_TASK, TASK_HERE

FLOAT32 = float(np.finfo(np.float32).max)
NO_SPAN = 1e9  # by how much "no answer" wins where a context has no tokens


Scores = dict[str, float]


class Task(Strict):
    """What a task answers. Subclasses are the settings too: one block of `road.tasks`."""

    type: str
    max_length: Annotated[int, Field(ge=8, le=10**6)] = 128

    model: ClassVar[Any]
    headline: ClassVar[str]
    row_metric: ClassVar[str]
    rows_per_feature: ClassVar[int] = 1
    continuous: ClassVar[bool] = False

    def head_settings(self) -> dict[str, Any]:
        """What the head's Hugging Face configuration holds."""
        raise NotImplementedError

    def labelled(self, example: Example) -> bool:
        """Whether an example can be trained on and scored."""
        return example.label is not None

    def lacking(self, example: Example) -> tuple[str, str]:
        """What an example that is not labelled lacks, and the setting that names the column of it."""
        return "label", "columns.label"

    def trained_on(self, pairs: Collection[bool | None]) -> "Task":
        """The task with what its head's rows were: for each data set whether they are pairs, None where some are."""
        return self

    def encode(self, examples: Sequence[Example], tokenizer: Any, first: int = 0) -> Iterator[Feature]:
        """The features of examples, the first of which has the number `first`. RoadError for a label that is not allowed."""
        raise NotImplementedError

    def outputs(self, head: Any, batch: Batch) -> Outputs:
        """The logits of a batch, from what the head's model returned."""
        raise NotImplementedError

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


class SpanQA(Task):
    """Extractive question answering: independent start and end, the CLS position means "no answer".

    Rows of logits: two per feature, start then end; the classes are the tokens.
    """

    type: Literal["span_qa"]
    max_length: Annotated[int, Field(ge=16, le=10**6)] = 384
    doc_stride: Count = 128
    max_question_length: Count = 64
    max_answer_length: Count = 30
    n_best: Count = 20
    null_threshold: float = 0.0

    model: ClassVar[Any] = AutoModelForQuestionAnswering
    headline: ClassVar[str] = "f1"
    row_metric: ClassVar[str] = "f1"
    rows_per_feature: ClassVar[int] = 2

    @model_validator(mode="after")
    def room_for_context(self):
        if self.max_length < self.max_question_length + 8:
            raise ValueError(
                f"max_length {self.max_length} leaves no room for a context beside a question of "
                f"max_question_length {self.max_question_length} tokens: raise the first or lower the second"
            )
        return self

    def head_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def labelled(self, example):
        return example.answers is not None and example.text_b is not None

    def lacking(self, example):
        return ("context", "columns.text_b") if example.text_b is None else ("answers", "columns.answers")

    def encode(self, examples, tokenizer, first=0):
        template = PairTemplate.of(tokenizer)
        for example in examples:
            if example.text_b is None:
                raise RoadError(f"{example.where}: the question has no context to find its answer in: give both texts")
        contexts = list(dict.fromkeys(e.text_b for e in examples))
        plain = {"add_special_tokens": False, "verbose": False}
        encoded = tokenizer(contexts, return_offsets_mapping=True, **plain)
        at = {context: i for i, context in enumerate(contexts)}
        questions = tokenizer([e.text_a for e in examples], **plain)["input_ids"]
        ids = [np.array(tokens, dtype=np.int32) for tokens in encoded["input_ids"]]
        offsets = [np.array(pairs, dtype=np.int32).reshape(-1, 2) for pairs in encoded["offset_mapping"]]
        for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
            context = at[example.text_b]
            span = None
            if example.answers:
                gold = example.answers[0]
                place = trimmed(example.text_b, gold.start, gold.start + len(gold.text))
                span = token_range(offsets[context], *place)
            yield from windows(
                question[: self.max_question_length],
                ids[context],
                offsets[context],
                span,
                template,
                max_length=self.max_length,
                doc_stride=self.doc_stride,
                example=first + number,
            )

    def outputs(self, head, batch):
        logits = torch.stack([head.start_logits, head.end_logits], dim=1).flatten(0, 1)  # [features x 2, tokens]
        return Outputs(logits, batch.lengths.repeat_interleave(2))

    def predict(self, examples, features, logits):
        parts: dict[int, list] = {}
        for feature, scores in zip(features, logits, strict=True):
            parts.setdefault(int(feature.example), []).append((feature, scores))
        settings = {"n_best": self.n_best, "max_answer_length": self.max_answer_length}
        return [answer(example.text_b or "", parts[i], **settings)[0] for i, example in enumerate(examples)]

    def text(self, prediction: Answered) -> str:
        """The answer given: empty where "no answer" wins by more than `null_threshold`."""
        return "" if prediction.no_answer > self.null_threshold else prediction.text

    def score(self, examples, predictions):
        """SQuAD 2.0 scores; best_* at the threshold tuned on these rows; answered_f1 on answerable ones, null off."""
        golds = {e.id: [a.text for a in e.answers or ()] for e in examples}
        texts = {e.id: self.text(p) for e, p in zip(examples, predictions, strict=True)}
        forced = {e.id: p.text for e, p in zip(examples, predictions, strict=True)}
        nulls = {e.id: min(p.no_answer, NO_SPAN) for e, p in zip(examples, predictions, strict=True)}
        plain = metrics.squad_scores(golds, texts)
        tuned = metrics.squad_scores(golds, forced, nulls)
        scores = {key: plain[key] for key in ("f1", "exact")}
        scores |= {key: plain[key] for key in ("HasAns_f1", "NoAns_f1") if key in plain}
        scores |= {key: tuned[key] for key in ("best_f1", "best_exact", "best_f1_thresh") if key in tuned}
        answerable = [e.id for e in examples if e.answers]
        if answerable:
            scores["answered_f1"] = 100 * float(np.mean([metrics.f1_score(forced[i], golds[i]) for i in answerable]))
        return scores

    def published(self, metric, examples, predictions):
        if metric != "quac_f1":
            return {}
        golds = {e.id: [a.text for a in e.answers or ()] for e in examples}
        return metrics.quac_scores(golds, {e.id: self.text(p) for e, p in zip(examples, predictions, strict=True)})

    def row_scores(self, examples, predictions):
        golds = [[a.text for a in e.answers or ()] for e in examples]
        return [metrics.f1_score(self.text(p), gold) for p, gold in zip(predictions, golds, strict=True)]

    def baseline(self, examples):
        return metrics.squad_baseline({e.id: [a.text for a in e.answers or ()] for e in examples})

    def describe(self, prediction):
        return {
            "answer": self.text(prediction),
            "span": prediction.text,
            "start": prediction.start,
            "end": prediction.end,
            "score": round(max(prediction.score, -NO_SPAN), 4),
            "no_answer": round(min(prediction.no_answer, NO_SPAN), 4),
        }


class TextTask(Task):
    """What classification and regression share: one text or a pair, one row of logits per feature.

    pairs: whether the head reads two texts or one; None: either.
    """

    pairs: bool | None = None

    model: ClassVar[Any] = AutoModelForSequenceClassification

    def trained_on(self, pairs):
        return self.model_copy(update={"pairs": next(iter(pairs))}) if len(set(pairs)) == 1 else self

    def encode(self, examples, tokenizer, first=0):
        options = {"truncation": True, "max_length": self.max_length, "return_token_type_ids": True}
        features: dict[int, tuple[list[int], list[int]]] = {}
        for paired in (False, True):  # a tokenizer takes lone texts or pairs, and a row is one or the other by itself
            rows = [number for number, e in enumerate(examples) if (e.text_b is not None) == paired]
            if not rows:
                continue
            if self.pairs not in (None, paired):
                said = "two texts, the head reads one" if paired else "one text, the head reads two: give both"
                raise RoadError(f"{examples[rows[0]].where}: {said}")
            second = [examples[row].text_b for row in rows] if paired else None
            encoded = tokenizer([examples[row].text_a for row in rows], second, **options)
            features |= zip(rows, zip(encoded["input_ids"], encoded["token_type_ids"], strict=True), strict=True)
        for number, example in enumerate(examples):
            ids, types = features[number]
            yield Feature(ids, types, [self.label(example)], first + number)

    def label(self, example: Example) -> int | float:
        """The target of an example, IGNORED where it has none."""
        raise NotImplementedError

    def outputs(self, head, batch):
        return Outputs(head.logits)


@dataclass(frozen=True)
class Classified:
    """label: the name of the likeliest class; probabilities: of every class, by name."""

    label: str
    probabilities: Mapping[str, float]


class Classification(TextTask):
    """One of a list of labels for a text or a pair. Labels are compared by name, their order is the head's."""

    type: Literal["classification"]
    labels: list[str]
    headline: ClassVar[str] = "accuracy"
    row_metric: ClassVar[str] = "accuracy"

    @field_validator("labels")
    @classmethod
    def at_least_two(cls, labels: list[str]) -> list[str]:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise ValueError(f"expected two or more different label names, got {labels}")
        return labels

    def head_settings(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }

    def label(self, example):
        if example.label is None:
            return IGNORED
        try:
            return self.labels.index(str(example.label))
        except ValueError:
            raise RoadError(
                f"{example.where}: label {example.label!r} is none of the task's labels ({', '.join(self.labels)})"
                f"{misspelt(str(example.label), self.labels)}; rename it with label_map, or leave such rows out with drop_labels"
            ) from None

    def predict(self, examples, features, logits):
        results = []
        for scores in logits:
            row = np.exp(scores[0].astype(np.float64) - scores[0].max())
            share = dict(zip(self.labels, (row / row.sum()).tolist(), strict=True))
            results.append(Classified(max(share, key=share.__getitem__), share))
        return results

    def score(self, examples, predictions):
        golds = [self.label(e) for e in examples]
        return metrics.classification_scores(golds, [self.labels.index(p.label) for p in predictions], self.labels)

    def row_scores(self, examples, predictions):
        return [float(self.labels[self.label(e)] == p.label) for e, p in zip(examples, predictions, strict=True)]

    def baseline(self, examples):
        return metrics.classification_baseline([self.label(e) for e in examples], self.labels)

    def describe(self, prediction):
        return {"label": prediction.label, **{k: round(v, 4) for k, v in prediction.probabilities.items()}}


class Regression(TextTask):
    """A number for a text or a pair: one class, squared error."""

    type: Literal["regression"]
    headline: ClassVar[str] = "pearson"
    row_metric: ClassVar[str] = "squared_error"
    continuous: ClassVar[bool] = True

    def head_settings(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def label(self, example):
        if example.label is None:
            return float("nan")
        try:
            value = float(example.label)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise RoadError(f"{example.where}: label {example.label!r} is not a number: a regression needs one")
        if abs(value) > FLOAT32:
            raise RoadError(f"{example.where}: label {example.label!r} is beyond {FLOAT32:.1e}: scale such labels down")
        return value

    def predict(self, examples, features, logits):
        return [float(scores[0, 0]) for scores in logits]

    def score(self, examples, predictions):
        return metrics.regression_scores([self.label(e) for e in examples], predictions)

    def row_scores(self, examples, predictions):
        return [(self.label(e) - p) ** 2 for e, p in zip(examples, predictions, strict=True)]

    def baseline(self, examples):
        return metrics.regression_baseline([self.label(e) for e in examples])

    def describe(self, prediction):
        return {"value": round(prediction, 4)}


TASKS: dict[str, type[Task]] = {"span_qa": SpanQA, "classification": Classification, "regression": Regression}


def task_from(settings: Any, where: str) -> Task:
    """The task that a block of settings describes. RoadError for an unknown type or setting."""
    return validated(_kind(settings, where), settings, where)


def _kind(settings: Any, where: str) -> type[Task]:
    kind = settings.get("type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in TASKS:
        if isinstance(kind, str) and kind in TASK_HERE:
            meant = f"; here it is {TASK_HERE[kind]}"
        else:
            meant = "" if str(kind) in NO_TASK else nearest(str(kind), TASKS)
        raise RoadError(f"{where}.type: got {quote(kind)}; allowed: {', '.join(TASKS)}{meant}")
    return TASKS[kind]


def label_names(task: Task) -> list[str] | None:
    """The names of a task's classes, in the order of its logits; None where they have none."""
    return getattr(task, "labels", None)


def heads(config: RoadConfig, faults: Faults | None = None) -> dict[str, Task]:
    """The heads of a run, by name: one per task, or one per data set. RoadError with the faults of all tasks.

    faults: collects them instead; tasks then come without the settings that do not hold, or not at all.
    """
    found = faults or Faults()
    tasks: dict[str, Task] = {}
    for name, settings in config.tasks.items():
        with found.caught():
            where = f"road.tasks.{name}"
            task, _ = sound(_kind(settings, where), settings, where, found)
            tasks |= {name: task} if task else {}
    if faults is None:
        found.end()
    return {config.head_of(name): tasks[spec.task] for name, spec in config.datasets.items() if spec.task in tasks}
