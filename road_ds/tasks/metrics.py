"""Scores of predictions against gold: SQuAD 2.0, classification, regression, and the baselines beside them.

All scores are percentages (0..100; correlations -100..100) except `mse` and the counts.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from road_ds.common.errors import RoadError
from road_ds.common.strict_json import load_json, quote

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)

# ---------------------------------------------------------------------------------------------- span QA


def normalize_answer(text: str) -> str:
    """The text in lower case, without ASCII punctuation and English articles, single-spaced (SQuAD's rule)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the prediction equals any gold answer after normalisation, else 0.0. No gold answer means "" is right."""
    predicted = normalize_answer(prediction)
    return float(any(predicted == gold for gold in _normalized_golds(golds)))


def f1_score(prediction: str, golds: Sequence[str]) -> float:
    """Word-overlap F1 (0..1) with the gold answer that fits best; 1 if prediction and gold are both empty."""
    predicted = normalize_answer(prediction).split()
    return max(_overlap(predicted, gold.split()) for gold in _normalized_golds(golds))


def _normalized_golds(golds: Sequence[str]) -> list[str]:
    return [gold for gold in map(normalize_answer, golds) if gold] or [""]


def _overlap(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    common = (Counter(predicted) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def squad_scores(
    golds: Mapping[str, Sequence[str]],
    predictions: Mapping[str, str],
    no_answer: Mapping[str, float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """The official SQuAD 2.0 evaluator's dictionary: exact, f1 (percent), total, HasAns_*, NoAns_*, and `missing`.

    `golds` holds each question's answer texts, none for an unanswerable one. HasAns_* and NoAns_* are there when the
    data has such questions. A prediction with `no_answer` above `threshold` counts as "" (official default: 1.0).

    Deliberate differences from the official program:
    - A question without a prediction scores 0, answerable or not, and is counted in `missing`; the official program
      says which one is missing and stops.
    - best_exact, best_exact_thresh, best_f1, best_f1_thresh (the threshold tuned on these very questions) are given
      only where there is something to tune: not without `no_answer` (as in the official program), nor when all its
      values are equal. Scoring at a reported threshold gives the score beside it; the official search may stop between
      equal values, and says 0.0 where "answer nothing" is best. "" scores the same at a threshold as when predicted.
    Thresholds are in the unit of `no_answer`; "answer nothing" is the next number below its lowest value.
    """
    if not golds:
        raise RoadError("no gold questions to score; expected at least one")
    answered = [question for question in golds if question in predictions]
    exact = dict.fromkeys(golds, 0.0) | {q: exact_match(predictions[q], golds[q]) for q in answered}
    f1 = dict.fromkeys(golds, 0.0) | {q: f1_score(predictions[q], golds[q]) for q in answered}
    tuned: dict[str, float] = {}
    if no_answer is not None:
        _check_no_answer(answered, no_answer)
        empty = {q: exact_match("", golds[q]) for q in answered}
        if len({no_answer[q] for q in answered}) > 1:
            for name, scores in (("exact", exact), ("f1", f1)):
                gained, at = _best_threshold(no_answer, {q: scores[q] - empty[q] for q in answered})
                tuned |= {
                    f"best_{name}": 100.0 * (sum(empty.values()) + gained) / len(golds),
                    f"best_{name}_thresh": at,
                }
        for question in answered:
            if no_answer[question] > threshold:
                exact[question] = f1[question] = empty[question]
    result = _averages(exact, f1, list(golds))
    for prefix, group in (("HasAns", [q for q in golds if golds[q]]), ("NoAns", [q for q in golds if not golds[q]])):
        if group:
            result |= {f"{prefix}_{key}": value for key, value in _averages(exact, f1, group).items()}
    return result | tuned | {"missing": len(golds) - len(answered)}


def _averages(exact: Mapping[str, float], f1: Mapping[str, float], questions: list[str]) -> dict[str, float]:
    total = len(questions)
    return {
        "exact": 100.0 * sum(exact[question] for question in questions) / total,
        "f1": 100.0 * sum(f1[question] for question in questions) / total,
        "total": total,
    }


def _check_no_answer(answered: list[str], no_answer: Mapping[str, float]) -> None:
    lacking = [question for question in answered if question not in no_answer]
    if lacking:
        raise RoadError(
            f"{len(lacking)} predictions have no no-answer probability, the first is question {quote(lacking[0])}; "
            "give one for each prediction"
        )
    for question in answered:
        if not np.isfinite(no_answer[question]):
            raise RoadError(f"no-answer probability of question {quote(question)} is {no_answer[question]}; not finite")


def _best_threshold(no_answer: Mapping[str, float], gains: Mapping[str, float]) -> tuple[float, float]:
    """The highest sum of gains over "answer nothing", and the lowest threshold that gives it.

    gains: by question, what answering it adds. Questions with equal `no_answer` are answered together or not at all.
    """
    ranked = sorted(gains, key=no_answer.__getitem__)
    best, threshold = 0.0, float(np.nextafter(no_answer[ranked[0]], -np.inf))
    score = 0.0
    for value, group in groupby(ranked, key=no_answer.__getitem__):
        score += sum(gains[question] for question in group)
        if score > best + 1e-9:  # rounding is no gain
            best, threshold = score, value
    return best, threshold


def quac_scores(golds: Mapping[str, Sequence[str]], predictions: Mapping[str, str]) -> dict[str, float]:
    """quac_f1 and quac_heq (percent), as QuAC's scorer computes them, and quac_total, the questions that count.

    With several references F1 is the mean over leaving one out of the best overlap with the rest, so that people and
    models are measured alike; heq is the share of questions at or above people's own F1. Questions on which people
    agree less than 0.4 do not count; a question without a prediction scores 0.
    """
    f1, human_beaten = [], []
    for question, references in golds.items():
        # for one who gave the reference left out, and for the model
        rest = [[r for j, r in enumerate(references) if j != i] for i in range(len(references))]
        several = len(references) > 1
        human = float(np.mean([f1_score(r, rest[i]) for i, r in enumerate(references)])) if several else 1.0
        if human < 0.4:
            continue
        if question not in predictions:
            score = 0.0
        elif several:
            score = float(np.mean([f1_score(predictions[question], others) for others in rest]))
        else:
            score = f1_score(predictions[question], references)
        f1.append(score)
        human_beaten.append(score >= human)
    if not f1:
        return {"quac_f1": 0.0, "quac_heq": 0.0, "quac_total": 0.0}
    return {
        "quac_f1": 100 * float(np.mean(f1)),
        "quac_heq": 100 * float(np.mean(human_beaten)),
        "quac_total": float(len(f1)),
    }


def squad_baseline(golds: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`squad_scores` of answering "" to every question."""
    return squad_scores(golds, dict.fromkeys(golds, ""))


# ---------------------------------------------------------------------- classification and regression


def classification_scores(labels: Sequence[int], predictions: Sequence[int], names: Sequence[str]) -> dict[str, float]:
    """accuracy, macro_f1 and mcc (Matthews), and with two labels f1 of the last-named one; percent, mcc -100..100.

    `labels` and `predictions` are positions in `names`. macro_f1 is the mean over the labels that occur in either;
    mcc is 0 where one side is constant. Raises RoadError for no rows, unequal lengths or a position outside `names`.
    """
    gold, predicted = _paired(labels, predictions)
    for what, values in (("label", gold), ("prediction", predicted)):
        outside = np.flatnonzero((values < 0) | (values >= len(names)) | (values % 1 != 0))
        if outside.size:
            row = outside[0]
            raise RoadError(f"{what} of row {row} is {values[row]:g}; expected 0..{len(names) - 1} for {list(names)}")
    gold, predicted = gold.astype(int), predicted.astype(int)
    result = {
        "accuracy": 100.0 * float(sk.accuracy_score(gold, predicted)),
        "macro_f1": 100.0 * float(sk.f1_score(gold, predicted, average="macro", zero_division=0)),
        "mcc": 100.0 * float(sk.matthews_corrcoef(gold, predicted)) if np.ptp(gold) and np.ptp(predicted) else 0.0,
    }
    if len(names) == 2:
        result["f1"] = 100.0 * float(sk.f1_score(gold, predicted, labels=[0, 1], pos_label=1, zero_division=0))
    return result


def classification_baseline(labels: Sequence[int], names: Sequence[str]) -> dict[str, float]:
    """`classification_scores` of always predicting the most frequent label (of equals, the first-named)."""
    frequent = int(np.bincount(np.asarray(labels, dtype=int), minlength=len(names)).argmax())
    return classification_scores(labels, [frequent] * len(labels), names)


def regression_scores(labels: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """pearson and spearman (x100; 0 where one side is constant) and mse (in the labels' unit, squared).

    Raises RoadError for no rows, unequal lengths or values that are not finite.
    """
    gold, predicted = _paired(labels, predictions)
    result = {"pearson": 0.0, "spearman": 0.0, "mse": float(np.mean((gold - predicted) ** 2))}
    if np.ptp(gold) > 0 and np.ptp(predicted) > 0:
        # nan_to_num: differences so small that their squares vanish are no variation either
        result["pearson"] = 100.0 * float(np.nan_to_num(stats.pearsonr(gold, predicted).statistic))
        result["spearman"] = 100.0 * float(np.nan_to_num(stats.spearmanr(gold, predicted).statistic))
    return result


def regression_baseline(labels: Sequence[float]) -> dict[str, float]:
    """`regression_scores` of always predicting the labels' mean; mse is their variance."""
    return regression_scores(labels, [float(np.mean(labels))] * len(labels) if len(labels) else [])


def _paired(labels: Sequence[float], predictions: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    gold, predicted = np.asarray(labels, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if gold.shape != predicted.shape or gold.ndim != 1:
        raise RoadError(f"labels have shape {gold.shape}, predictions {predicted.shape}; expected one of each per row")
    if not gold.size:
        raise RoadError("no rows to score; expected at least one label and its prediction")
    for what, values in (("label", gold), ("prediction", predicted)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise RoadError(f"{what} of row {wrong[0]} is {values[wrong[0]]}; expected a finite number")
    return gold, predicted


# ------------------------------------------------------------------------------------------------- files


def load_squad_golds(path: str | Path) -> dict[str, list[str]]:
    """Answer texts by question id, [] for an unanswerable one, from an official SQuAD 1.1 or 2.0 file."""
    document = load_json(path)
    try:
        questions = [
            qa for article in document["data"] for paragraph in article["paragraphs"] for qa in paragraph["qas"]
        ]
        golds = {str(qa["id"]): [str(answer["text"]) for answer in qa["answers"]] for qa in questions}
    except (KeyError, TypeError) as error:
        raise RoadError(
            f"{path}: not SQuAD JSON ({type(error).__name__}: {error}); "
            'expected {"data": [{"paragraphs": [{"qas": [{"id": ..., "answers": [{"text": ...}]}]}]}]}'
        ) from error
    if len(golds) != len(questions):
        twice = next(id for id, count in Counter(str(qa["id"]) for qa in questions).items() if count > 1)
        raise RoadError(f"{path}: question id {quote(twice)} stands there more than once; ids must be unique")
    return golds


def load_predictions(path: str | Path) -> dict[str, str]:
    """Predicted text by question id, "" for no answer, from JSON {id: text}."""
    return _load_values(path, "a text", lambda value: isinstance(value, str))


def load_probabilities(path: str | Path) -> dict[str, float]:
    """No-answer probability (or score difference) by question id, from JSON {id: number}."""
    return _load_values(path, "a finite number", lambda value: type(value) in (int, float) and abs(value) < 1e308)


def _load_values(path, expected, valid) -> dict[str, Any]:
    document = load_json(path)
    if not isinstance(document, dict):
        raise RoadError(f"{path}: holds {quote(document)}; expected one JSON object, {{question id: {expected}}}")
    for key, value in document.items():
        if not valid(value):
            raise RoadError(f"{path}: question {quote(key)} has {quote(value)}; expected {expected}")
    return document
