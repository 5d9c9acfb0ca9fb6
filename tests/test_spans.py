"""Windows before the model and answers after it."""

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import SHARED
from transformers import AutoTokenizer

from road_ds.common.hub import sample_path
from road_ds.data.batch import Feature
from road_ds.data.readers import Answer, Example
from road_ds.tasks.metrics import exact_match
from road_ds.tasks.span_qa import SpanQA
from road_ds.tasks.spans import answer, best_context, window_starts

GAP = 20  # how much higher the gold tokens score than all others


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


def perfect_logits(feature: Feature) -> np.ndarray:
    logits = np.zeros((2, len(feature.input_ids)))
    logits[0, feature.labels[0]] = logits[1, feature.labels[1]] = GAP
    return logits


def decode(task: SpanQA, tokenizer, example: Example):
    features = list(task.encode([example], tokenizer))
    return task.predict([example], features, [perfect_logits(f) for f in features])[0], features


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 30))
def test_windows_cover_the_context_and_overlap_by_the_stride(tokens, capacity, stride):
    starts = window_starts(tokens, capacity, stride)
    covered = set()
    for start in starts:
        covered |= set(range(start, min(start + capacity, tokens)))
    assert covered == set(range(tokens))
    assert all(b - a == min(stride, capacity) for a, b in pairwise(starts))
    assert starts[-1] + capacity >= tokens and (len(starts) == 1 or starts[-2] + capacity < tokens)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 30))
def test_best_context_against_the_definition(tokens, capacity, stride):
    starts = window_starts(tokens, capacity, stride)
    best = best_context(tokens, starts, capacity)
    for token in range(tokens):

        def context(start, token=token):
            stop = min(start + capacity, tokens)
            inside = start <= token < stop
            return min(token - start, stop - 1 - token) + 0.01 * (stop - start) if inside else -1

        assert context(starts[best[token]]) == max(map(context, starts)) >= 0


def test_windows_of_a_long_context(tokenizer):
    words = [f"{w} {n}" for n, w in enumerate(["the town", "a shop", "a bridge", "the mill"] * 20)]
    context = " . ".join(words)
    start = context.index("the mill 39")
    example = Example("q", "where is it ?", context, None, (Answer("the mill 39", start),), "row")
    task = SpanQA(type="span_qa", max_length=48, doc_stride=16, max_question_length=16)
    answered, features = decode(task, tokenizer, example)
    assert len(features) > 5 and all(len(f.input_ids) <= 48 for f in features)
    holding = [f for f in features if tuple(f.labels) != (0, 0)]
    assert 1 < len(holding) < len(features), "some windows hold the answer, the others point at CLS"
    assert answered.text == "the mill 39" and context[answered.start : answered.end] == "the mill 39"
    best = np.zeros(len(context), int)
    for feature in features:
        for (first, last), flag in zip(np.reshape(feature.offsets, (-1, 2)), feature.best, strict=True):
            best[first:last] += flag
    assert set(best[[i for i, c in enumerate(context) if c.isalnum()]]) == {1}, "each token counts in one window"


def test_offsets_are_code_points(tokenizer):
    context = "Zoë 🎈🎈 lives in Łódź 😀, near the mill."
    start = context.index("Łódź")
    example = Example("q", "where ?", context, None, (Answer("Łódź", start),), "row")
    answered, _ = decode(SpanQA(type="span_qa", max_length=96, max_question_length=8), tokenizer, example)
    assert (answered.text, answered.start, answered.end) == ("Łódź", start, start + 4)


def two_windows(n=8):
    offsets = [-1, -1, *(v for i in range(n) for v in (2 * i, 2 * i + 1)), -1, -1]
    first = [False, *[True] * 4, *[False] * 4, False]
    second = [False, *[False] * 4, *[True] * 4, False]
    return [Feature([0] * (n + 2), [], [0, 0], 0, offsets, best) for best in (first, second)]


def test_scores_over_windows_by_hand():
    context = "a b c d e f g h"
    features = two_windows()
    logits = np.zeros((2, 2, 10))
    logits[0, 0, 0] = logits[0, 1, 0] = 3  # window 1: null 6
    logits[1, 0, 0] = logits[1, 1, 0] = 1  # window 2: null 2, the lower one counts
    logits[0, 0, 6] = 9  # a start outside its best window: passed over
    logits[1, 0, 6], logits[1, 1, 7] = 4, 3
    found = answer(context, list(zip(features, logits, strict=True)), n_best=5, max_answer_length=3)
    assert (found[0].text, found[0].score, found[0].null_score, found[0].no_answer) == ("f g", 7, 2, -5)
    assert len(found) == 5 and [a.score for a in found] == sorted((a.score for a in found), reverse=True)


def test_an_answer_is_no_longer_than_allowed_and_never_backwards():
    context = "a b c d e f g h"
    feature = two_windows()[0]
    logits = np.zeros((2, 10))
    logits[0, 1], logits[1, 4] = 5, 5
    assert answer(context, [(feature, logits)], n_best=3, max_answer_length=4)[0].text == "a b c d"
    assert answer(context, [(feature, logits)], n_best=3, max_answer_length=3)[0].text != "a b c d"
    logits = np.zeros((2, 10))
    logits[0, 4], logits[1, 1] = 5, 5
    best = answer(context, [(feature, logits)], n_best=20, max_answer_length=30)[0]
    assert best.start < best.end


def test_the_null_threshold_decides():
    task = {"type": "span_qa", "max_length": 48, "max_question_length": 8}
    example = Example("q", "x", "a b c d e f g h", None, (), "row")
    features = two_windows()
    logits = np.zeros((2, 2, 10))
    logits[:, :, 0] = 1  # null 2 beats the best span's 0 by 2
    answered = SpanQA(**task).predict([example], features, list(logits))[0]
    assert answered.no_answer == 2
    assert SpanQA(**task).text(answered) == ""
    assert SpanQA(**task, null_threshold=2.5).text(answered) != ""


def test_a_context_without_tokens_and_a_long_question(tokenizer):
    task = SpanQA(type="span_qa", max_length=32, max_question_length=8)
    example = Example("q", "what " * 200, "​", None, (), "row")
    answered, features = decode(task, tokenizer, example)
    assert answered.text == "" and len(features) == 1 and len(features[0].input_ids) <= 32


@pytest.mark.skipif(not SHARED.exists(), reason="needs the real rows beside the project")
def test_gold_spans_of_squad_decode_to_gold_text(tokenizer, capsys):
    """Every answerable question: the labels of its windows, decoded, score exact 100 for at least 99 %."""
    from road_ds.config.road import DatasetSpec
    from road_ds.data.readers import read

    examples = read(str(SHARED / "squad2" / "dev.json"), DatasetSpec(task="qa")).examples
    # the sample's tokenizer spells unknown words letter by letter: answers are long in tokens
    task = SpanQA(type="span_qa", max_length=384, doc_stride=128, max_answer_length=320)
    features = list(task.encode(examples, tokenizer))
    predictions = task.predict(examples, features, [perfect_logits(f) for f in features])
    answerable = [(e, p) for e, p in zip(examples, predictions, strict=True) if e.answers]
    wrong = [(e, p) for e, p in answerable if not exact_match(p.text, [e.answers[0].text])]
    assert len(examples) == 1494 and len(answerable) == 725
    with capsys.disabled():
        for example, predicted in wrong:
            print(json.dumps({"id": example.id, "gold": example.answers[0].text, "decoded": predicted.text}))
    assert len(wrong) <= 0.01 * len(answerable)
    for example, predicted in wrong:  # the reason: the gold text begins or ends inside a token
        gold = example.answers[0]
        assert predicted.start <= gold.start and predicted.end >= gold.start + len(gold.text)
    assert all(task.text(p) == "" for e, p in zip(examples, predictions, strict=True) if not e.answers)
