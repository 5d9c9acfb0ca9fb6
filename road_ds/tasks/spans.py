"""Span questions: a context cut into windows before the model, and the best answer found over them after it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from road_ds.common.errors import RoadError
from road_ds.data.batch import Feature


@dataclass(frozen=True)
class PairTemplate:
    """The special tokens that a tokenizer puts around a question and a context, with their token types."""

    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    types: tuple[list[int], int, list[int], int, list[int]]  # prefix, question, middle, context, suffix

    @property
    def special(self) -> int:
        """How many tokens of a window are neither question nor context."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    @classmethod
    def of(cls, tokenizer: Any) -> "PairTemplate":
        """The template of a tokenizer, read off one encoded pair. RoadError unless rows begin with a CLS token."""
        pair = tokenizer("a", "b")
        ids, parts = pair["input_ids"], pair.sequence_ids(0)
        types = pair.get("token_type_ids", [0] * len(ids))
        a = [i for i, part in enumerate(parts) if part == 0]
        b = [i for i, part in enumerate(parts) if part == 1]
        if not a or not b or a[0] == 0:
            raise RoadError(
                "the tokenizer begins a row with no CLS token, whose position means 'no answer' in span QA: expected one of an encoder"
            )
        cuts = slice(0, a[0]), slice(a[-1] + 1, b[0]), slice(b[-1] + 1, len(ids))
        prefix, middle, suffix = (ids[cut] for cut in cuts)
        return cls(prefix, middle, suffix, (types[cuts[0]], types[a[0]], types[cuts[1]], types[b[0]], types[cuts[2]]))


def window_starts(tokens: int, capacity: int, stride: int) -> list[int]:
    """The first context token of each window: `stride` apart until the last window reaches the end."""
    starts = [0]
    while starts[-1] + capacity < tokens:
        starts.append(starts[-1] + min(stride, capacity))
    return starts


def best_context(tokens: int, starts: Sequence[int], capacity: int) -> np.ndarray:
    """The window in which each token has the most context on its poorer side, [tokens]; longer windows win ties."""
    best, scores = np.zeros(tokens, dtype=np.int64), np.full(tokens, -1.0)
    for window, start in enumerate(starts):
        stop = min(start + capacity, tokens)
        inside = np.arange(stop - start)
        score = np.minimum(inside, inside[::-1]) + 0.01 * (stop - start)
        better = score > scores[start:stop]
        best[start:stop][better], scores[start:stop][better] = window, score[better]
    return best


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters [start, end) of a text without the white space around them; nothing is left of white space alone."""
    part = text[start:end]
    start += len(part) - len(part.lstrip())
    return start, start + len(part.strip())


def token_range(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """First and last token that overlap the characters [start, end); None where no token does, or there are none."""
    if start >= end:
        return None
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def windows(
    question: Sequence[int],
    context: np.ndarray,
    offsets: np.ndarray,
    answer: tuple[int, int] | None,
    template: PairTemplate,
    *,
    max_length: int,
    doc_stride: int,
    example: int,
) -> Iterator[Feature]:
    """The features of one question: [CLS] question [SEP] window [SEP].

    context: token ids, [tokens]; offsets: their characters, [tokens, 2]; answer: its first and last context token. A
    window that does not hold the whole answer is labelled (0, 0), the CLS position, also when the question has an answer.
    `doc_stride` is the distance between the first tokens of neighbouring windows (as in BERT and ELECTRA).
    """
    capacity = max_length - template.special - len(question)
    starts = window_starts(len(context), capacity, doc_stride)
    best = best_context(len(context), starts, capacity)
    types = template.types
    head = np.array([*template.prefix, *question, *template.middle], dtype=np.int32)
    head_types = np.array([*types[0], *([types[1]] * len(question)), *types[2]], dtype=np.int8)
    tail = np.array(template.suffix, dtype=np.int32)
    for window, start in enumerate(starts):
        part = slice(start, min(start + capacity, len(context)))
        inside = slice(len(head), len(head) + part.stop - start)
        tokens = inside.stop + len(tail)
        labels = [0, 0]
        if answer is not None and start <= answer[0] and answer[1] < part.stop:
            labels = [len(head) + answer[0] - start, len(head) + answer[1] - start]
        token_types = np.full(tokens, types[3], dtype=np.int8)
        token_types[: len(head)], token_types[inside.stop :] = head_types, types[4]
        spans, most = np.full((tokens, 2), -1, dtype=np.int32), np.zeros(tokens, dtype=np.int8)
        spans[inside], most[inside] = offsets[part], best[part] == window
        ids = np.concatenate([head, context[part], tail])
        yield Feature(ids, token_types, labels, example, spans.ravel(), most)


@dataclass(frozen=True)
class Answered:
    """The best span of a question over all its windows.

    text: "" where no span was possible; start, end: characters in the context; score: start plus end logit;
    null_score: the lowest no-answer score of any window.
    """

    text: str
    start: int
    end: int
    score: float
    null_score: float

    @property
    def no_answer(self) -> float:
        """By how much "no answer" beats the span: above the threshold, the answer is empty."""
        return self.null_score - self.score


def answer(
    context: str, parts: Sequence[tuple[Feature, np.ndarray]], *, n_best: int, max_answer_length: int
) -> list[Answered]:
    """The `n_best` spans of one question, best first (at least one entry, which may be empty).

    parts: each window's feature and its logits, [2 (start, end), tokens]. Both ends lie in the context, the end not
    before the start, at most `max_answer_length` tokens; a start counts only in the window where it has the most
    context (as the BERT and ELECTRA scorers do).
    """
    null_score = min(float(logits[0, 0] + logits[1, 0]) for _, logits in parts)
    found: dict[tuple[int, int], float] = {}
    for feature, logits in parts:
        tokens = len(feature.input_ids)
        offsets = np.asarray(feature.offsets).reshape(tokens, 2)
        starts = _top(np.where(feature.best, logits[0, :tokens], -np.inf), n_best)
        ends = _top(np.where(offsets[:, 0] >= 0, logits[1, :tokens], -np.inf), n_best)
        length = ends[None, :] - starts[:, None]
        for i, j in zip(*np.nonzero((length >= 0) & (length < max_answer_length)), strict=True):
            span = int(offsets[starts[i], 0]), int(offsets[ends[j], 1])
            score = float(logits[0, starts[i]] + logits[1, ends[j]])
            found[span] = max(score, found.get(span, -np.inf))
    ranked = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    if not ranked:
        return [Answered("", 0, 0, -np.inf, null_score)]
    spans = [(*trimmed(context, *span), score) for span, score in ranked]  # some tokenizers count spaces into a token
    return [Answered(context[start:end], start, end, score, null_score) for start, end, score in spans]


def _top(scores: np.ndarray, n: int) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")[:n]
    return order[np.isfinite(scores[order])]
