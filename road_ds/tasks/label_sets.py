"""Scores of sets of labels against gold sets: F1, average precision, and the thresholds that would have been best."""

from collections.abc import Sequence

import numpy as np
from sklearn import metrics as sk

from road_ds.common.errors import RoadError

Scores = dict[str, float]


def label_set_scores(gold: np.ndarray, probabilities: np.ndarray, threshold: float) -> Scores:
    """micro_f1, macro_f1, row_f1, exact, micro_ap and macro_ap in percent, and best_*_f1 with best_*_f1_thresh.

    gold: [rows, labels], whether a label applies; probabilities: [rows, labels], those above `threshold` are answered. F1 and
    average precision are scikit-learn's: micro over all labels of all rows, macro the mean over labels (of average
    precision over those that apply somewhere), a label that neither applies nor is answered counts 0. row_f1: the mean of
    `row_f1`; exact: rows whose set is right. best_*: at the one threshold for all labels that is best on these very rows.
    RoadError for no rows.
    """
    if not gold.size:
        raise RoadError("no rows to score; expected at least one row and its labels")
    answered, at = probabilities > threshold, {}
    found = [sk.average_precision_score(gold[:, i], probabilities[:, i]) for i in np.flatnonzero(gold.any(axis=0))]
    result = {
        "micro_f1": sk.f1_score(gold, answered, average="micro", zero_division=0),
        "macro_f1": sk.f1_score(gold, answered, average="macro", zero_division=0),
        "row_f1": np.mean(row_f1(gold, answered)),
        "exact": (gold == answered).all(axis=1).mean(),
        "micro_ap": sk.average_precision_score(gold.ravel(), probabilities.ravel()) if found else 0.0,
        "macro_ap": np.mean(found) if found else 0.0,
    }
    for name, shape in (("best_micro_f1", (-1, 1)), ("best_macro_f1", gold.shape)):
        result[name], at[f"{name}_thresh"] = best_threshold(gold.reshape(shape), probabilities.reshape(shape))
    return {name: 100.0 * float(value) for name, value in result.items()} | at


def row_f1(gold: np.ndarray, answered: np.ndarray) -> Sequence[float]:
    """The F1 of each row's set, 0 to 1; 1 where both sets are empty."""
    hits, sizes = (gold & answered).sum(axis=1), gold.sum(axis=1) + answered.sum(axis=1)
    return np.where(sizes == 0, 1.0, 2 * hits / np.maximum(sizes, 1)).tolist()


def best_threshold(gold: np.ndarray, probabilities: np.ndarray) -> tuple[float, float]:
    """The highest mean of the columns' F1, 0 to 1, at a threshold common to all, and the highest such threshold.

    gold, probabilities: [rows, columns]. What is above the threshold is answered: it is the next lower probability that
    occurs, or lies just below the lowest. Source: one pass down all probabilities, each of which moves the F1 of its column.
    """
    order = np.argsort(-probabilities, axis=0, kind="stable")
    hits = np.take_along_axis(gold, order, axis=0).cumsum(axis=0)
    answers = np.arange(1, len(gold) + 1)[:, None]
    f1 = 2 * hits / (answers + gold.sum(axis=0))  # [answers, columns]
    gains = np.diff(f1, axis=0, prepend=0.0).ravel()
    values = np.take_along_axis(probabilities, order, axis=0).ravel()
    down = np.argsort(-values, kind="stable")
    values, means = values[down], gains[down].cumsum() / gold.shape[1]
    ends = np.flatnonzero(np.append(values[:-1] != values[1:], True))  # equal ones are answered together
    best = ends[(means[ends] > means[ends].max() - 1e-12).argmax()]  # rounding is no gain
    return float(means[best]), float(values[best + 1] if best + 1 < len(values) else np.nextafter(values[-1], -np.inf))


def label_set_baseline(gold: np.ndarray) -> Scores:
    """`label_set_scores` of each label's share of the rows as its probability in all of them, at the best threshold for micro_f1."""
    shares = np.broadcast_to(gold.mean(axis=0), gold.shape)
    return label_set_scores(gold, shares, best_threshold(gold.reshape(-1, 1), shares.reshape(-1, 1))[1])
