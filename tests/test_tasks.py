"""Examples to features: each by itself, whatever stands beside it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.config.road import DatasetSpec
from road_ds.data.features import load_features
from road_ds.data.readers import Answer, Example
from road_ds.tasks.base import Task
from road_ds.tasks.registry import task_from

TOKENIZER = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
PAIRS = task_from({"type": "classification", "labels": ["no", "yes"], "max_length": 16}, "pairs")
RATING = task_from({"type": "regression", "max_length": 16}, "rating")
SPANS = task_from({"type": "span_qa", "max_length": 32, "max_question_length": 8, "doc_stride": 8}, "spans")

texts = st.lists(st.sampled_from(["the", "mill", "Ada", "🎈", "."]), min_size=1, max_size=30).map(" ".join)
examples = st.lists(st.tuples(texts, st.none() | st.just("") | texts), min_size=1, max_size=6)


def encoded(task: Task, rows: list[Example]) -> list[tuple]:
    return [
        (np.asarray(f.input_ids).tolist(), np.asarray(f.token_type_ids).tolist(), np.asarray(f.labels).tolist())
        for f in task.encode(rows, TOKENIZER)
    ]


@pytest.mark.parametrize(("task", "label"), [(PAIRS, "yes"), (RATING, "2.5"), (SPANS, None)])
@settings(deadline=None, max_examples=60)
@given(given=examples)
def test_a_row_is_encoded_alike_alone_and_among_others(task, label, given):
    answers = () if task is SPANS else None
    rows = [
        Example(str(n), a, (b or "x") if task is SPANS else b, label, answers, "row") for n, (a, b) in enumerate(given)
    ]
    assert encoded(task, rows) == [feature for row in rows for feature in encoded(task, [row])]


@pytest.mark.parametrize(
    ("kind", "key", "logits"),
    [("classification", "label", [[0, 1, 3]]), ("multi_label", "labels", [[0, -3], [0, -3], [0, 3]])],
)
def test_a_class_with_the_name_of_the_answer_does_not_take_its_place(kind, key, logits):
    task = task_from({"type": kind, "labels": ["label", "labels", "other"]}, "odd")
    (prediction,) = task.predict([None], [None], [np.array(logits, dtype=np.float32)])
    said = task.describe(prediction)
    assert said[key] in ("other", ["other"]) and {*said} == {"label", "labels", "other"} and said["other"] > 0.8


def test_a_lone_text_beside_a_pair_has_no_second_text():
    one, two = Example("1", "the mill", None, "no", None, "row"), Example("2", "the mill", "Ada", "no", None, "row")
    (lone, _, _), (pair, types, _) = encoded(PAIRS, [one, two])
    assert lone == TOKENIZER("the mill")["input_ids"]
    assert pair == TOKENIZER("the mill", "Ada")["input_ids"] and 1 in types


@pytest.mark.parametrize(("pairs", "given", "said"), [
    (True, None, "row: one text, the head reads two: give both"),
    (False, "Ada", "row: two texts, the head reads one"),
    (True, "Ada", None), (False, None, None), (None, None, None), (None, "Ada", None),
])  # fmt: skip
def test_a_head_reads_what_it_was_trained_on(pairs, given, said):
    for task, label in ((PAIRS, "no"), (RATING, "1")):
        example = Example("1", "the mill", given, label, None, "row")
        trained = task.trained_on([pairs, pairs])
        assert trained.pairs is pairs
        if said is None:
            assert encoded(trained, [example]) == encoded(task, [example])
        else:
            with pytest.raises(RoadError, match=said):
                encoded(trained, [example])
    assert PAIRS.trained_on([True, False]).pairs is None and SPANS.trained_on([True]) is SPANS


def test_a_run_and_standard_input_read_the_same_ids(tmp_path):
    """The rows of two files, one with a second text, through the cache of a run; and all of them line by line."""
    from road_ds.commands.predict import read_lines

    lines, trained = ["the mill", "the mill\tAda", "Ada ."], []
    for name, kept in (("lone", [lines[0], lines[2]]), ("pairs", [lines[1]])):
        rows = [dict(zip(("text_a", "text_b"), line.split("\t"), strict=False), label="no") for line in kept]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = load_features(name, "train", DatasetSpec(task="t", train=str(file)), PAIRS, TOKENIZER, tmp_path)
        trained += [source[i].input_ids.tolist() for i in range(len(source))]
    typed = read_lines("\n".join([lines[0], lines[2], lines[1]]).encode())
    assert trained == [ids for ids, _, _ in encoded(PAIRS, typed)]


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """One whose offsets hold the space before a word, as those of many byte-level and sentence models do."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁Ada", "▁lives", "▁in", "▁Oslo", "▁now", "▁where"]
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    own.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=own, **names)


@pytest.mark.parametrize("before", [" ", "  ", "\t", "\n "])
@pytest.mark.parametrize("after", [" ", " \n ", "\u00a0"])
def test_white_space_around_an_answer_labels_no_other_word(before, after):
    """Predictions are trimmed; so what is trained on is, too."""
    tokenizer, context = spaced_tokenizer(), f"Ada{before}lives in{after}Oslo now"

    def labels(text: str) -> list[int]:
        answer = Answer(text, context.index(text))
        (feature,) = SPANS.encode([Example("q", "where", context, None, (answer,), "row")], tokenizer)
        return list(feature.labels)

    wide = [before + "lives in", "lives in" + after, before + "lives in" + after]
    assert labels("lives in") != [0, 0] and {tuple(labels(text)) for text in wide} == {tuple(labels("lives in"))}


def test_an_answer_of_white_space_is_none():
    tokenizer = spaced_tokenizer()
    (feature,) = SPANS.encode([Example("q", "where", "Ada  Oslo", None, (Answer(" ", 3),), "row")], tokenizer)
    assert list(feature.labels) == [0, 0]
