"""Scores against published figures, against figures worked out by hand, and against a second, naive implementation."""

import json
import math
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from road_ds.common.errors import RoadError
from road_ds.data.readers import Answer, Example
from road_ds.tasks.metrics import (
    classification_baseline,
    classification_scores,
    exact_match,
    f1_score,
    load_predictions,
    load_probabilities,
    load_squad_golds,
    normalize_answer,
    quote,
    regression_baseline,
    regression_scores,
    squad_baseline,
    squad_scores,
)
from road_ds.tasks.span_qa import SpanQA
from road_ds.tasks.spans import Answered

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad2"
real_rows = pytest.mark.skipif(not DATA.is_dir(), reason=f"real SQuAD 2.0 rows are not at {DATA}")


# ------------------------------------------------------------------------------------- the published system


@real_rows
def test_published_system_gets_the_official_figures():
    scores = squad_scores(load_squad_golds(DATA / "dev.json"), load_predictions(DATA / "predictions_bert_dev.json"))
    official = {
        "exact": 77.84471218206158,
        "f1": 80.10550197244542,
        "total": 1494,
        "HasAns_exact": 74.89655172413794,
        "HasAns_f1": 79.55533785770139,
        "HasAns_total": 725,
        "NoAns_exact": 80.62418725617685,
        "NoAns_f1": 80.62418725617685,
        "NoAns_total": 769,
        "missing": 0,
    }
    assert scores.keys() == official.keys()
    for key, value in official.items():
        assert math.isclose(scores[key], value, rel_tol=0, abs_tol=1e-9), key


@real_rows
def test_empty_baseline_on_real_rows_is_the_share_of_unanswerable():
    scores = squad_baseline(load_squad_golds(DATA / "dev.json"))
    assert scores["exact"] == scores["f1"] == pytest.approx(100 * 769 / 1494)
    assert (scores["HasAns_f1"], scores["NoAns_f1"]) == (0, 100)


# ---------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel  Tower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("Theatre, another, Ana", "theatre another ana"),  # articles are whole words
        ("U.S.A.", "usa"),  # punctuation goes before words are cut
        ("the-end", "theend"),
        ("A.", ""),
        ("“the” Äpfel\u00a0GROẞ", "“ ” äpfel groß"),  # only ASCII punctuation goes; no-break space is a space
        ("北京 the 大学", "北京 大学"),
        ("", ""),
    ],
)
def test_normalize_answer(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("the Normans", ["Normans"], 1, 1),
        ("in the 10th century", ["10th century", "the 11th"], 0, 0.8),  # precision 2/3, recall 1
        ("cat cat", ["cat"], 0, 2 / 3),  # a word counts as often as it is in both
        ("", [], 1, 1),
        ("word", [], 0, 0),
        ("", ["word"], 0, 0),
        ("", ["the", "word"], 0, 0),  # a gold answer that is empty when normalised is no answer
        ("", ["the"], 1, 1),
        ("a", [], 1, 1),
        ("red", ["blue", "red car"], 0, 2 / 3),
    ],
)
def test_exact_match_and_f1(prediction, golds, exact, f1):
    assert exact_match(prediction, golds) == exact
    assert f1_score(prediction, golds) == pytest.approx(f1)


def test_missing_predictions_count_as_wrong_also_where_there_is_no_answer():
    golds = {"has": ["yes"], "has too": ["no"], "none": [], "none too": []}
    scores = squad_scores(golds, {"has": "yes", "none": "", "of another file": "x"})
    assert scores == {
        "exact": 50, "f1": 50, "total": 4,
        "HasAns_exact": 50, "HasAns_f1": 50, "HasAns_total": 2,
        "NoAns_exact": 50, "NoAns_f1": 50, "NoAns_total": 2,
        "missing": 2,
    }  # fmt: skip


def test_groups_without_questions_have_no_keys():
    assert squad_scores({"q": ["yes"]}, {"q": "yes"}).keys() == {
        "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total", "missing",
    }  # fmt: skip
    assert "HasAns_total" not in squad_scores({"q": []}, {"q": "yes"})


GOLDS = {"sure": ["red"], "wrong": ["blue"], "none": [], "late": ["green grass"]}
PREDICTIONS = {"sure": "red", "wrong": "pink", "none": "grey", "late": "green"}
NO_ANSWER = {"sure": 0.1, "wrong": 0.3, "late": 0.5, "none": 0.9}


def test_threshold_turns_predictions_into_no_answer_strictly_above_it():
    at = {t: squad_scores(GOLDS, PREDICTIONS, NO_ANSWER, t)["exact"] for t in (0.0, 0.1, 0.89, 0.9, 1.0)}
    assert at == {0.0: 25, 0.1: 50, 0.89: 50, 0.9: 25, 1.0: 25}


def test_best_thresholds_by_hand():
    scores = squad_scores(GOLDS, PREDICTIONS, NO_ANSWER)
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (50, 0.1)
    assert scores["best_f1"] == pytest.approx(100 * (1 + 1 + 2 / 3) / 4)
    assert scores["best_f1_thresh"] == 0.5
    assert scores["exact"] == 25  # the plain scores stay those of the default threshold


def test_a_question_without_prediction_is_wrong_at_every_threshold():
    scores = squad_scores(GOLDS | {"lost": []}, PREDICTIONS, NO_ANSWER | {"lost": 0.2})
    assert (scores["best_exact"], scores["best_exact_thresh"], scores["missing"]) == (40, 0.1, 1)


def test_no_threshold_is_claimed_where_none_was_tuned():
    plain = squad_scores(GOLDS, PREDICTIONS)
    assert squad_scores(GOLDS, PREDICTIONS, dict.fromkeys(GOLDS, 0.0)) == plain
    assert not any(key.startswith("best") for key in plain)


def test_questions_of_one_probability_are_answered_together():
    tied = {"sure": 0.2, "none": 0.2, "late": 0.7, "wrong": 0.7}
    scores = squad_scores(GOLDS, PREDICTIONS, tied)  # "sure" is right, "none" loses its point: nothing is gained
    assert (scores["best_exact"], scores["best_exact_thresh"]) == (25, math.nextafter(0.2, -1))
    assert squad_scores(GOLDS, PREDICTIONS, tied, scores["best_exact_thresh"])["exact"] == 25
    assert squad_scores(GOLDS, PREDICTIONS, tied, 0.0)["exact"] == 25


def test_answering_nothing_has_a_threshold_that_answers_nothing():
    golds, predictions, chances = {"a": [], "b": []}, {"a": "x", "b": "y"}, {"a": -3.5, "b": -1.0}
    scores = squad_scores(golds, predictions, chances)
    assert scores["best_f1"] == 100 and scores["best_f1_thresh"] < -3.5
    assert squad_scores(golds, predictions, chances, scores["best_f1_thresh"])["f1"] == 100
    assert squad_scores(golds, predictions, chances, 0.0)["f1"] == 0, "what 0.0 would have given"


# --------------------------------------------------------------------- a second, naive implementation


def naive_words(text):
    kept = [c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
    runs = ("".join(run) for _, run in groupby(kept, key=lambda c: c.isalnum() or c == "_"))
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def naive_f1(prediction, golds):
    golds = [naive_words(gold) for gold in golds if naive_words(gold)] or [[]]
    scores = []
    for gold in golds:
        rest, same = list(gold), 0
        for word in naive_words(prediction):
            if word in rest:
                rest.remove(word)
                same += 1
        length = len(gold) + len(naive_words(prediction))
        scores.append(2 * same / length if length else 1.0)
    return max(scores)


def naive_exact(prediction, golds):
    return float(naive_words(prediction) in ([naive_words(gold) for gold in golds if naive_words(gold)] or [[]]))


def naive_best(golds, predictions, no_answer, score):
    """Every threshold is scored from nothing; the first of the best wins."""
    values = sorted({no_answer[question] for question in predictions})
    outcomes = []
    for threshold in [math.nextafter(values[0], -math.inf), *values]:
        said = {q: "" if no_answer[q] > threshold else predictions[q] for q in predictions}
        outcomes.append((sum(score(said[q], golds[q]) for q in said), threshold))
    best = max(total for total, _ in outcomes)
    return 100 * best / len(golds), next(at for total, at in outcomes if total >= best - 1e-9)


texts = st.one_of(
    st.text(alphabet="atheTHEn .,'-_“é\u00a0ßİ😀", max_size=12),
    st.lists(st.sampled_from(["the", "a", "an", "cat", "Cat.", "dog", "été", "北京"]), max_size=5).map(" ".join),
)


@given(texts, st.lists(texts, max_size=4))
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_naive_scores(prediction, golds):
    assert normalize_answer(prediction).split() == naive_words(prediction)
    assert f1_score(prediction, golds) == pytest.approx(naive_f1(prediction, golds))
    assert exact_match(prediction, golds) == naive_exact(prediction, golds)


questions = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["red", "red car", "blue", "the"]), max_size=2),
        st.sampled_from(["", "red", "car", "blue", "a", None]),
        st.sampled_from([-1.5, 0.0, 0.25, 0.5, 0.75, 3.0]),
    ),
    min_size=2,
    max_size=8,
)


def given_by(rows):
    golds, predictions, no_answer = ({str(i): row[part] for i, row in enumerate(rows)} for part in range(3))
    return golds, {question: text for question, text in predictions.items() if text is not None}, no_answer


@given(questions)
@settings(max_examples=300, deadline=None)
def test_best_thresholds_agree_with_brute_force(rows):
    golds, predictions, no_answer = given_by(rows)
    scores = squad_scores(golds, predictions, no_answer)
    assert ("best_f1" in scores) == (len({no_answer[question] for question in predictions}) > 1)
    if "best_f1" in scores:
        for name, score in (("exact", naive_exact), ("f1", naive_f1)):
            best, at = naive_best(golds, predictions, no_answer, score)
            assert scores[f"best_{name}"] == pytest.approx(best)
            assert scores[f"best_{name}_thresh"] == at


@given(questions)
@settings(max_examples=300, deadline=None)
def test_scoring_at_the_best_threshold_gives_the_best_score(rows):
    golds, predictions, no_answer = given_by(rows)
    scores = squad_scores(golds, predictions, no_answer)
    for name in ("exact", "f1") if "best_f1" in scores else ():
        used = squad_scores(golds, predictions, no_answer, scores[f"best_{name}_thresh"])
        assert used[name] == pytest.approx(scores[f"best_{name}"])


spans = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["red", "red car", "the"]), max_size=2),
        st.sampled_from(["", "red", "car", "a"]),
        st.sampled_from([-math.inf, -2.0, 1.5, 4.0]),
        st.sampled_from([-1.0, 1.5, 3.0]),
    ),
    min_size=1,
    max_size=6,
)


@given(spans)
@settings(max_examples=200, deadline=None)
def test_a_null_threshold_of_the_best_score_gives_it(rows):
    """From the scores of an evaluation to the setting of a task, and back."""
    task = SpanQA(type="span_qa")
    examples = [
        Example(str(i), "q", "c", None, tuple(Answer(gold, 0) for gold in golds), "row")
        for i, (golds, *_) in enumerate(rows)
    ]
    said = ((text if score > -math.inf else "", score, null) for _, text, score, null in rows)  # no span, no text
    predictions = [Answered(text, 0, len(text), score, null) for text, score, null in said]
    scores = task.score(examples, predictions)
    if "best_f1" in scores:
        tuned = task.model_copy(update={"null_threshold": scores["best_f1_thresh"]})
        assert tuned.score(examples, predictions)["f1"] == pytest.approx(scores["best_f1"])


# ----------------------------------------------------------------------- classification and regression


def test_two_labels_by_hand():
    scores = classification_scores([0, 0, 1, 1], [0, 1, 1, 1], ["different", "same"])
    assert scores == {
        "accuracy": pytest.approx(75),
        "macro_f1": pytest.approx(100 * (2 / 3 + 0.8) / 2),
        "mcc": pytest.approx(100 / math.sqrt(3)),
        "f1": pytest.approx(80),  # of "same", the label named last
    }


def test_more_labels_have_no_single_f1_and_macro_is_over_labels_that_occur():
    scores = classification_scores([0, 1, 1], [0, 1, 1], ["a", "b", "c"])
    assert scores == {"accuracy": 100, "macro_f1": 100, "mcc": 100}


@pytest.mark.filterwarnings("error")
def test_constant_predictions_are_zero_not_nan():
    assert classification_scores([0, 1], [0, 0], ["a", "b"]) == {
        "accuracy": 50, "macro_f1": pytest.approx(100 / 3), "mcc": 0, "f1": 0,
    }  # fmt: skip
    assert classification_scores([0, 0], [0, 0], ["a", "b"])["mcc"] == 0
    assert regression_scores([1, 2, 3], [2, 2, 2]) == {"pearson": 0, "spearman": 0, "mse": pytest.approx(2 / 3)}
    assert regression_scores([2, 2], [1, 3]) == {"pearson": 0, "spearman": 0, "mse": 1}
    assert regression_scores([1], [1]) == {"pearson": 0, "spearman": 0, "mse": 0}


def test_regression_by_hand():
    scores = regression_scores([1, 2, 3, 4], [1, 4, 9, 16])
    assert scores["spearman"] == pytest.approx(100)
    assert scores["pearson"] == pytest.approx(100 * 25 / math.sqrt(5 * 129))
    assert scores["mse"] == pytest.approx((0 + 4 + 36 + 144) / 4)
    assert regression_scores([1, 2], [2, 1])["pearson"] == pytest.approx(-100)


def test_baselines():
    assert classification_baseline([1, 0, 1, 2], ["a", "b", "c"])["accuracy"] == 50
    assert classification_baseline([1, 0], ["a", "b"]) == classification_scores([1, 0], [0, 0], ["a", "b"])
    assert regression_baseline([1.0, 2.0, 6.0]) == {"pearson": 0, "spearman": 0, "mse": pytest.approx(14 / 3)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification_scores([0, 1], [0], ["a", "b"]), r"shape \(2,\), predictions \(1,\)"),
        (lambda: classification_scores([], [], ["a", "b"]), "no rows"),
        (lambda: classification_scores([0, 2], [0, 1], ["a", "b"]), r"label of row 1 is 2; expected 0\.\.1"),
        (lambda: classification_scores([0, 1], [0, -1], ["a", "b"]), r"prediction of row 1 is -1; expected 0\.\.1"),
        (lambda: regression_scores([0, 1], [0, math.nan]), "prediction of row 1 is nan"),
        (lambda: regression_baseline([]), "no rows"),
        (lambda: classification_baseline([], ["a", "b"]), "no rows"),
        (lambda: squad_scores({}, {}), "no gold questions"),
        (lambda: squad_scores(GOLDS, PREDICTIONS, {"sure": 0.5}), "3 predictions have no .* question 'wrong'"),
        (lambda: squad_scores(GOLDS, PREDICTIONS, NO_ANSWER | {"none": math.nan}), "question 'none' is nan"),
    ],
)
def test_what_cannot_be_scored_is_named(call, message):
    with pytest.raises(RoadError, match=message):
        call()


# ------------------------------------------------------------------------------------------------ files


def squad_file(questions):
    return json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": questions}]}]})


def test_files_round_trip(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(
        "\ufeff" + squad_file([{"id": "q", "answers": [{"text": "é😀"}]}, {"id": "r", "answers": []}]), "utf-8"
    )
    assert load_squad_golds(file) == {"q": ["é😀"], "r": []}
    file.write_text('{"q": "é😀", "r": ""}', "utf-8")
    assert load_predictions(file) == {"q": "é😀", "r": ""}
    file.write_text('{"q": 0, "r": -1.5}', "utf-8")
    assert load_probabilities(file) == {"q": 0, "r": -1.5}


@pytest.mark.parametrize(
    ("load", "content", "message"),
    [
        (load_predictions, b'{"q": "x",\n "r" "y"}', r"a\.json:2: malformed JSON at column 6"),
        (load_predictions, b"", r"a\.json:1: malformed JSON at column 1"),
        (load_predictions, b'{"q": "x",\n"r": "\xe9"}', r"a\.json:2: byte 0xE9 is not UTF-8"),
        (load_predictions, b'["x"]', r"a\.json: holds \['x'\]; expected one JSON object"),
        (load_predictions, b'{"q": null}', r"a\.json: question 'q' has None; expected a text"),
        (load_predictions, b'{"q": "x", "q": "y"}', r"a\.json: key 'q' stands twice"),
        (load_predictions, b"[" * 100_000, r"a\.json: JSON nested too deeply"),
        (load_probabilities, b'{"q": NaN}', r"a\.json: NaN is not JSON"),
        (load_probabilities, b'{"q": 1e999}', r"question 'q' has inf; expected a finite number"),
        (load_probabilities, b'{"q": true}', r"question 'q' has True; expected a finite number"),
        (load_squad_golds, b'{"q": "x"}', r"a\.json: not SQuAD JSON \(KeyError: 'data'\); expected"),
        (load_squad_golds, squad_file([{"id": "q"}]).encode(), r"not SQuAD JSON \(KeyError: 'answers'\)"),
        (load_squad_golds, squad_file([{"id": "q", "answers": []}] * 2).encode(), r"question id 'q' stands there more"),
    ],
)
def test_malformed_files_are_named(tmp_path, load, content, message):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(RoadError, match=message):
        load(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(RoadError, match=r"cannot read .*none\.json: No such file"):
        load_predictions(tmp_path / "none.json")


@given(st.one_of(st.text(max_size=300), st.recursive(st.integers(), st.lists, max_leaves=30), st.binary(max_size=300)))
def test_quoted_values_are_short_and_printable(value):
    assert len(quote(value)) <= 80
    assert quote(value).isprintable()
