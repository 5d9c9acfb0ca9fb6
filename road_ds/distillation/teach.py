"""Soft targets for a run: every teacher's logits for every training row, shared out over the processes, kept on disk."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from road_ds.common.errors import RoadError
from road_ds.common.hub import head_folder
from road_ds.common.log import is_main, progress, say, table, warn
from road_ds.common.ranks import Ranks
from road_ds.common.sealed import MANIFEST
from road_ds.config.file import load_config
from road_ds.config.road import DatasetSpec, RoadConfig
from road_ds.data.batch import IGNORED, Batch
from road_ds.data.features import FeatureSet, load_features
from road_ds.distillation.neighbours import open_folder, texts_of
from road_ds.distillation.objective import Taught
from road_ds.distillation.registry import objective_from
from road_ds.distillation.retrieve import encoded, folder_of, origin_of
from road_ds.distillation.soft_targets import (
    Origin,
    SoftTargets,
    begin,
    finish,
    flaw,
    has_shard,
    shard_rows,
    write_shard,
)
from road_ds.distillation.teachers import Pupil, pupil, targets_folder
from road_ds.models.configuration import base_config, check_lengths, load_tokenizer
from road_ds.models.predictor import Predictor
from road_ds.models.states import States, Wanted
from road_ds.tasks.base import Task
from road_ds.tasks.evaluation import batch_logits
from road_ds.tasks.inferred import with_labels
from road_ds.tasks.labels import label_names, order_of, reordered
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.registry import Heads, heads


def teach(path: str, overrides: list[str], batch_size: int = 64) -> None:
    """Writes the soft targets that a run's `road.distill.teachers` ask for, and says how good the teachers are.

    What is there and still holds stays; what was interrupted goes on; what was made from something else is made anew.
    """
    config, _ = load_config(path, overrides)
    objective = objective_from(config)
    if not isinstance(objective, Taught):
        raise RoadError(f"{path}: road.distill names no teachers: there is nothing to write")
    if objective.source != "cached":
        raise RoadError(
            f"{path}: road.distill.source is {objective.source}: the teachers run beside the student, nothing is written"
        )
    ranks = Ranks.start(config.step_timeout)
    config, tasks, labels = ranks.together(lambda: with_labels(config, heads(config)))
    if labels:
        say(*labels)
    tokenizer = ranks.together(lambda: load_tokenizer(config.model))
    check_lengths(base_config(config.model, tokenizer, config.dropout), tasks)
    lines, shares = [], []
    for own, read in pupils(config, objective, tasks, tokenizer, ranks):
        scores = np.stack([ask(own, name, read, config.cache, objective, ranks, batch_size) for name in own.teachers])
        labelled = own.dataset in config.datasets
        for name, of in zip(own.teachers, scores, strict=True):
            value = f"squared error {of.mean():.4g}" if own.task.continuous else f"{of.mean():.1%} right"
            lines.append((own.dataset, name, f"{len(of):,}", value if labelled else "no labels"))
        if labelled and not own.task.continuous:
            shares.append((own.dataset, right_shares(scores)))
    say(table(lines, ("data set", "teacher", "features", "on its rows")), "")
    for dataset, share in shares:
        parts = ", ".join(f"{number}: {value:.1%}" for number, value in enumerate(share))
        say(f"{dataset}: teachers right on a row: {parts}")
    ranks.leave()


def pupils(
    config: RoadConfig, objective: Taught, tasks: Heads, tokenizer: Any, ranks: Ranks
) -> Iterator[tuple[Pupil, Callable[[Any], FeatureSet]]]:
    """What a run's teachers are asked about, each data set and the texts of its neighbours, and its reader."""
    for dataset in objective.teachers:
        task = tasks.task(dataset)
        read = partial(read_rows, dataset, config.datasets[dataset], config.cache, task, ranks)
        own = pupil(dataset, tasks, ranks.together(partial(read, tokenizer)), tokenizer, objective)
        yield own, read
        if settings := objective.neighbours.get(dataset):
            folder = folder_of(objective, config.cache, dataset)
            origin = ranks.together(partial(origin_of, dataset, settings, own.rows, task))
            ranks.together(partial(open_folder, folder, origin, dataset, ranks.local_rank == 0, config.file))
            read = partial(encoded, folder, dataset, task, config.cache, ranks.local_rank == 0)
            yield replace(own, dataset=texts_of(dataset), rows=ranks.together(partial(read, tokenizer))), read


def ask(
    own: Pupil,
    name: str,
    read: Callable[[Any], FeatureSet],
    cache: str,
    objective: Taught,
    ranks: Ranks,
    batch_size: int,
) -> np.ndarray:
    """How right a teacher is on each feature of a data set, [features]; its soft targets are on disk then.

    read: the data set's rows as the model of a tokenizer reads them; cache: the run's.
    """
    folder = ranks.together(lambda: own.accept(name))
    origin = ranks.together(lambda: own.origin(name, folder, objective.dtype, objective.compared is not None))
    target = targets_folder(objective, cache, own.dataset, name)
    flaws = ranks.gather(flaw(target, origin) if ranks.local_rank == 0 else "")
    if any(flaws):
        predictor = ranks.together(lambda: Predictor.load(head_folder(name, own.head)))
        rows = ranks.together(lambda: read(predictor.tokenizer))

        def start() -> None:
            if not is_main():
                return
            finished = (target / MANIFEST).exists()
            if different := begin(target, origin):
                say(f"{own.dataset}: {name}: made anew, it was from another {', another '.join(different)}")
            elif finished:
                warn(f"{next(filter(None, flaws))}: made again")

        ranks.apart(start)
        ranks.apart(lambda: write(target, origin, own, predictor, rows, ranks, batch_size))
        ranks.apart(lambda: finish(target, origin, name) if is_main() else None)
    return ranks.together(lambda: SoftTargets(target, origin, name, verify=False)).scores()


def read_rows(dataset: str, spec: DatasetSpec, cache: str, task: Task, ranks: Ranks, tokenizer: Any) -> FeatureSet:
    """The training rows of a data set as a tokenizer's model reads them."""
    return load_features(dataset, "train", spec, task, tokenizer, cache, verify=ranks.local_rank == 0)


def right_shares(scores: np.ndarray) -> list[float]:
    """The share of rows on which 0, 1, ..., all teachers are right; scores: [teachers, rows] of 0 and 1."""
    right = scores.sum(0).astype(int)
    return (np.bincount(right, minlength=len(scores) + 1) / len(right)).tolist()


def write(
    folder: Any, origin: Origin, own: Pupil, predictor: Predictor, read: FeatureSet, ranks: Ranks, batch_size: int
) -> None:
    """Writes this rank's shards of a teacher's soft targets; `read`: the rows as the teacher reads them."""
    shards = list(enumerate(shard_rows(origin)))[ranks.rank :: ranks.world_size]
    order = order_of(label_names(predictor.task), origin.labels)
    lengths = np.asarray(read.lengths)
    layers, _ = origin.vectors or (0, 0)
    wanted = Wanted(tuple(range(1, layers + 1)), first=True)
    with progress(sum(len(rows) for _, rows in shards), f"teaching {own.dataset}", "row") as bar:
        for number, rows in shards:
            if not has_shard(folder, number):
                logits: dict[int, np.ndarray] = {}
                vectors: dict[int, np.ndarray] = {}
                by_length = sorted(rows, key=lambda row: -lengths[row])
                for first in range(0, len(rows), batch_size):
                    part = by_length[first : first + batch_size]
                    values, states = said(predictor, read, part, own.task, wanted)
                    values = [aligned(own, read, *pair, name=predictor.name) for pair in zip(part, values, strict=True)]
                    logits |= zip(part, [reordered(v, order, origin.per_label) for v in values], strict=True)
                    vectors |= zip(part, states, strict=True)
                    bar.update(len(part))
                found = [logits[row] for row in rows]
                labels = [np.asarray(own.rows[row].labels) for row in rows]
                scores = row_scores(own.task, found, labels)
                write_shard(folder, number, found, scores, origin, [vectors[row] for row in rows])
            else:
                bar.update(len(rows))


def aligned(own: Pupil, read: FeatureSet, row: int, logits: np.ndarray, name: str) -> np.ndarray:
    """A teacher's logits of a feature for the rows of logits that the student has there. RoadError where it lacks some."""
    try:
        return own.task.aligned(own.rows[row], read[row], logits)
    except RoadError as error:
        where = own.rows.example(own.rows[row].example).where
        raise RoadError(f"road.distill.teachers.{own.dataset}: {name}: {where}: {error}") from None


def said(
    predictor: Predictor, read: FeatureSet, rows: Sequence[int], task: Task, wanted: Wanted
) -> tuple[list[np.ndarray], np.ndarray]:
    """A teacher's logits of some features, each [rows, classes], and the wanted first tokens' states, [features, layers, width]."""
    seen: list[States] = []

    def model(batch: Batch, head: str) -> Outputs:
        outputs, states = predictor.observed(batch, wanted)
        seen.append(states)
        return outputs

    logits = batch_logits(model, read, rows, task, "", predictor.tokenizer.pad_token_id or 0, predictor.device)
    vectors = [state.float().cpu().numpy() for state in seen[0].hidden.values()]
    return logits, np.stack(vectors, axis=1) if vectors else np.empty((len(rows), 0, 0))


def row_scores(task: Task, logits: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """Per feature 1 where every row's argmax is its label, else 0; for a regression the squared error."""
    if task.continuous:
        return np.array([float((v[0, 0] - y[0]) ** 2) for v, y in zip(logits, labels, strict=True)])
    return np.array([
        float(all(row.argmax() == label for row, label in zip(v, y, strict=True) if label != IGNORED))
        for v, y in zip(logits, labels, strict=True)
    ])  # fmt: skip
