"""A task over a split: logits gathered over ranks, each row once, then predictions and scores on rank 0."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from road_ds.common.digest import text_sha256
from road_ds.common.errors import RoadError
from road_ds.common.log import progress, table, write_json
from road_ds.common.ranks import Ranks
from road_ds.data.batch import Feature, collate
from road_ds.data.features import FeatureSet
from road_ds.data.readers import Example
from road_ds.tasks.base import Scores, Task

SCORED = (3,)  # the key of what is drawn for rows that are scored


@dataclass
class MemorySet:
    """Features that were encoded for one use and are not cached."""

    name: str
    features: list[Feature]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> Feature:
        return self.features[int(index)]

    @property
    def lengths(self) -> np.ndarray:
        """The tokens of each feature, [features]."""
        return np.array([len(f.input_ids) for f in self.features])

    @cached_property
    def rows(self) -> np.ndarray:
        """Rows of logits that each feature gives, [features]."""
        return np.array([len(f.labels) for f in self.features])

    @classmethod
    def encode(cls, name: str, examples: Sequence[Example], task: Task, tokenizer: Any) -> "MemorySet":
        """The features of examples, in order."""
        return cls(name, list(task.encode(examples, tokenizer)))


@dataclass(frozen=True)
class Evaluated:
    """A data set's scores, those of the best answer that ignores the text, and the metric to look at first.

    predictions: a line per row, {"id", "score": row_metric, "prediction": the task's plain values}; rows_sha256: which rows
    were scored.
    """

    scores: Scores
    baseline: Scores
    headline: str
    row_metric: str
    rows: int
    predictions: list[dict[str, Any]] = field(repr=False)
    rows_sha256: str

    def summary(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {key: value for key, value in vars(self).items() if key != "predictions"}


def compute_logits(
    model: Callable[..., Any],
    source: FeatureSet | MemorySet,
    task: Task,
    head: str,
    ranks: Ranks | None,
    *,
    pad_id: int,
    batch_size: int,
    device: torch.device | str,
) -> list[np.ndarray] | None:
    """Each feature's logits without padding, [rows, classes] float32, in order; None on ranks other than 0.

    Every rank runs the same number of batches (ZeRO 3 gathers weights in each), the last of which may be repeats that
    are dropped.
    """
    rank, world_size = (ranks.rank, ranks.world_size) if ranks else (0, 1)
    lengths = np.asarray(source.lengths)
    order = np.argsort(-lengths, kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    mine = batches[rank::world_size]
    turns = -(-len(batches) // world_size)
    found: dict[int, np.ndarray] = {}
    bar = progress(turns, f"evaluating {source.name}", "batch")
    for turn in range(turns):
        rows = mine[turn] if turn < len(mine) else batches[-1]
        values = batch_logits(model, source, rows, task, head, pad_id, device)
        if turn < len(mine):
            found |= zip(map(int, rows), values, strict=True)
        bar.update()
    bar.close()
    gathered = ranks.collect(found) if ranks else [found]
    if rank > 0:
        return None
    whole = {index: value for part in gathered for index, value in part.items()}
    if not all(np.isfinite(value).all() for value in whole.values()):
        raise RoadError(
            f"{source.name}: the model's outputs are not finite: the training diverged; lower the learning rate"
        )
    return [whole[i] for i in range(len(source))]


def batch_logits(
    model: Callable[..., Any],
    source: FeatureSet | MemorySet,
    rows: Sequence[int] | np.ndarray,
    task: Task,
    head: str,
    pad_id: int,
    device: torch.device | str,
) -> list[np.ndarray]:
    """The logits of some features without padding, each [rows, classes] float32."""
    batch = collate(source, rows, pad_id)
    batch = task.draw(batch, SCORED, batch.lengths.numpy()).to(device)  # the same in each evaluation, of each run
    # Nothing is compiled for the many widths and row counts that occur only here.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        outputs = model(batch, head)
    values = outputs.logits.float().cpu().numpy()
    if task.rows_per_feature is None:
        return np.split(values, np.cumsum(source.rows[rows])[:-1])
    values = values.reshape(len(rows), task.rows_per_feature, -1)
    if outputs.lengths is None:
        return list(values)
    classes = outputs.lengths.cpu().numpy().reshape(len(rows), -1)[:, 0]
    return [value[:, :count] for count, value in zip(classes, values, strict=True)]


def evaluate(
    engine: Any,
    sources: Mapping[str, FeatureSet],
    heads: Mapping[str, tuple[str, Task]],
    ranks: Ranks,
    *,
    pad_id: int,
    batch_size: int,
) -> dict[str, Evaluated]:
    """Scores per data set on rank 0, empty elsewhere. `heads`: per data set its head and task."""
    results = {}
    training = engine.training
    engine.eval()
    for name, source in sources.items():
        head, task = heads[name]
        logits = compute_logits(
            engine, source, task, head, ranks, pad_id=pad_id, batch_size=batch_size, device=ranks.device
        )
        if logits is not None:
            features = [source[i] for i in range(len(source))]
            results[name] = score(task, list(source.examples()), features, logits, source.manifest.metric)
    engine.train(training)
    return results


def identity(examples: Iterable[Example]) -> str:
    """The hash of rows with their ids, texts, labels and answers; in whatever order and file they stood."""
    rows = [
        (e.id, e.text_a, e.text_b, e.label, sorted(a.text for a in e.answers or ()), *(c.text for c in e.choices or ()))
        for e in examples
    ]
    return text_sha256(json.dumps(sorted(rows, key=lambda row: row[0])))


def score(
    task: Task,
    examples: Sequence[Example],
    features: Sequence[Feature],
    logits: Sequence[np.ndarray],
    metric: str | None = None,
) -> Evaluated:
    """The scores of a task's predictions, beside its baseline; `metric` is the data set's own, to look at first."""
    predictions = task.predict(examples, features, logits)
    scores = task.score(examples, predictions)
    if metric is not None and metric not in scores:
        scores |= task.published(metric, examples, predictions)
    rows = zip(examples, task.row_scores(examples, predictions), predictions, strict=True)
    return Evaluated(
        scores=scores,
        baseline=task.baseline(examples),
        headline=metric if metric is not None and metric in scores else task.headline,
        row_metric=task.row_metric,
        rows=len(examples),
        predictions=[{"id": e.id, "score": score, "prediction": task.describe(p)} for e, score, p in rows],
        rows_sha256=identity(examples),
    )


def mean_headline(results: Mapping[str, Evaluated]) -> float:
    """The mean of the data sets' headline metrics: what `road.select` compares."""
    return float(np.mean([result.scores[result.headline] for result in results.values()]))


def write_results(folder: Path, results: Mapping[str, Evaluated], facts: Mapping[str, Any]) -> None:
    """Writes predictions/ and then results.json: the scores of each data set, and what else is to be known."""
    write_predictions(results, folder / "predictions")
    scores = {name: result.summary() for name, result in results.items()}
    write_json(folder / "results.json", {"scores": scores, **facts})


def write_predictions(results: Mapping[str, Evaluated], folder: Path) -> None:
    """Writes `<data set>.jsonl` for each data set, a line per row."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in result.predictions)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def flat(results: Mapping[str, Evaluated]) -> dict[str, float]:
    """Scores as `<data set>/<metric>`."""
    return {f"{name}/{key}": value for name, result in results.items() for key, value in result.scores.items()}


def report(results: Mapping[str, Evaluated]) -> str:
    """A table of every data set's headline metric beside its baseline, with the other metrics after it."""
    rows = []
    for name, result in results.items():
        others = [f"{k} {v:.1f}" for k, v in result.scores.items() if k != result.headline and not k.endswith("thresh")]
        base = result.baseline.get(result.headline, 0.0)
        rows.append(
            (
                name,
                result.rows,
                result.headline,
                f"{result.scores[result.headline]:.1f}",
                f"{base:.1f}",
                " · ".join(others),
            )
        )
    return table(rows, ("data set", "rows", "metric", "dev", "baseline", "others"))
