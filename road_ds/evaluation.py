"""A task over a split: logits gathered over ranks, each row once, then predictions and scores on rank 0."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from road_ds.errors import RoadError
from road_ds.features import Feature, FeatureSet, collate
from road_ds.log import progress, table
from road_ds.ranks import Ranks
from road_ds.readers import Example
from road_ds.tasks import Scores, Task


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

    @classmethod
    def encode(cls, name: str, examples: Sequence[Example], task: Task, tokenizer: Any) -> "MemorySet":
        """The features of examples, in order."""
        return cls(name, list(task.encode(examples, tokenizer)))


@dataclass(frozen=True)
class Evaluated:
    """A data set's scores, those of the best answer that ignores the text, and the metric to look at first."""

    scores: Scores
    baseline: Scores
    headline: str
    rows: int


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
    # Nothing is compiled for the many widths and row counts that occur only here.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for turn in range(turns):
            rows = mine[turn] if turn < len(mine) else batches[-1]
            batch = collate(source, rows, pad_id).to(device)
            outputs = model(batch, head)
            if turn < len(mine):
                values = outputs.logits.float().cpu().numpy().reshape(len(rows), task.rows_per_feature, -1)
                for index, value in zip(rows, values, strict=True):
                    found[int(index)] = value[:, : lengths[index]] if outputs.lengths is not None else value
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
            results[name] = score(task, source.examples(), [source[i] for i in range(len(source))], logits)
    engine.train(training)
    return results


def score(
    task: Task, examples: Sequence[Example], features: Sequence[Feature], logits: Sequence[np.ndarray]
) -> Evaluated:
    """The scores of a task's predictions, beside its baseline."""
    predictions = task.predict(examples, features, logits)
    return Evaluated(task.score(examples, predictions), task.baseline(examples), task.headline, len(examples))


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
