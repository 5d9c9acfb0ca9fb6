"""Extractive question answering."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from transformers import AutoModelForQuestionAnswering

from road_ds.common.errors import RoadError
from road_ds.config.settings import Count
from road_ds.tasks import metrics
from road_ds.tasks.base import Task
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.spans import Answered, PairTemplate, answer, token_range, trimmed, windows

NO_SPAN = 1e9  # by how much "no answer" wins where a context has no tokens
KINDS = ("no answer", "answer")  # of questions


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
    hub_task: ClassVar[str | None] = "question-answering"
    asked: ClassVar[str] = 'ask(question="Who ...?", context="...")  # transformers has no pipeline for this any more'
    headline: ClassVar[str] = "f1"
    row_metric: ClassVar[str] = "f1"
    over_tokens: ClassVar[bool] = True
    truncates: ClassVar[bool] = False

    @model_validator(mode="after")
    def room_for_context(self):
        if self.max_length < self.max_question_length + 8:
            raise ValueError(
                f"max_length {self.max_length} leaves no room for a context beside a question of "
                f"max_question_length {self.max_question_length} tokens: raise the first or lower the second"
            )
        return self

    @property
    def rows_per_feature(self):
        return 2

    def head_settings(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def reads(self, pairs):
        return pairs is True

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
        return Outputs(logits, batch.lengths.repeat_interleave(2), joint=2)

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

    def golds(self, example):
        return [KINDS[bool(example.answers)]]

    def matched(self, example, said):
        return [(KINDS[bool(example.answers)], KINDS[bool(said["answer"])])]

    def certainty(self, said):
        """How far the best span's score is from that of no answer, at the threshold."""
        return abs(said["no_answer"] - self.null_threshold)
