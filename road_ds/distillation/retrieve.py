"""The neighbours that a run's `road.distill.neighbours` asks for: found, kept on disk, and opened."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.common.digest import file_sha256, text_sha256
from road_ds.common.errors import RoadError
from road_ds.common.hub import head_folder, local_file, model_folder
from road_ds.common.log import counted, progress, say, table, warn
from road_ds.common.ranks import Ranks
from road_ds.common.sealed import commit, seal
from road_ds.config.file import load_config
from road_ds.config.road import Columns, DatasetSpec
from road_ds.data.features import FeatureSet, load_features
from road_ds.data.readers import Example, Reading
from road_ds.data.sources import Source
from road_ds.data.tokenizer import read_tokenizer, tokenizer_hash
from road_ds.distillation import search
from road_ds.distillation.neighbours import (
    SIMILARITY,
    TABLE,
    TEXTS,
    NeighbourKD,
    Neighbours,
    Origin,
    Retrieved,
    open_folder,
    texts_of,
)
from road_ds.distillation.objective import Objective
from road_ds.distillation.registry import neighbours_of, objective_from
from road_ds.distillation.teachers import weights_hash
from road_ds.models.configuration import check_lengths, load_tokenizer
from road_ds.models.pretrained import read_config
from road_ds.tasks.base import Task
from road_ds.tasks.classification import Classification
from road_ds.tasks.inferred import with_labels
from road_ds.tasks.registry import Heads, heads

BY_WORDS = "tfidf"


def retrieve(path: str, overrides: list[str], batch_size: int = 64) -> None:
    """Finds the neighbours that a run asks for, and says how near they are. What is there and still holds stays."""
    config, _ = load_config(path, overrides)
    objective = objective_from(config)
    if not (asked := neighbours_of(objective)):
        raise RoadError(f"{path}: road.distill.neighbours names no data set: there is nothing to find")
    config, tasks, _ = with_labels(config, heads(config))
    tokenizer = load_tokenizer(config.model)
    lines = []
    for dataset, settings in asked.items():
        task = tasks.task(dataset)
        rows = load_features(dataset, "train", config.datasets[dataset], task, tokenizer, config.cache)
        origin = origin_of(dataset, settings, rows, task)
        folder = folder_of(objective, config.cache, dataset)
        try:
            found, _ = open_folder(folder, origin, dataset)
        except RoadError as error:
            if folder.exists():
                warn(f"{str(error).partition('; run `')[0]}: found again")
            find(folder, origin, dataset, settings, rows, task, batch_size)
            found, _ = open_folder(folder, origin, dataset, verified=False)
        cosines = np.load(folder / SIMILARITY)
        far = np.mean(cosines[:, 0] <= 0)
        lines.append((
            dataset, f"{len(rows):,}", f"{found.searched:,}", f"{cosines[:, 0].mean():.3f}", f"{cosines[:, -1].mean():.3f}", f"{far:.1%}",
        ))  # fmt: skip
    say(table(lines, ("data set", "rows", "texts", "cosine of the nearest", "of the last", "rows near none")))


def folder_of(objective: Objective, cache: str, dataset: str) -> Path:
    """Where a data set's neighbours are kept: where the objective says, else in the run's cache."""
    return Path(getattr(objective, "cache", None) or cache).expanduser() / "neighbours" / dataset


def origin_of(dataset: str, settings: NeighbourKD, rows: FeatureSet, task: Task) -> Origin:
    """What a data set's neighbours would be found from. RoadError where it can have none, or a file or model is not there."""
    about = f"road.distill.neighbours.{dataset}"
    if not isinstance(task, Classification) or rows.pairs is not False:
        kind = f"pairs of texts for {task.type}" if rows.pairs else f"for {task.type}"
        raise RoadError(f"{about}: neighbours are of single texts to be classified, its rows are {kind}: take it out")
    contents = [[Path(file).name, _content(file, f"{about}.text")] for file in settings.files]
    by = settings.by
    if by != BY_WORDS:
        folder = model_folder(head_folder(by, ""))
        check_lengths(read_config(folder, by), {dataset: task})
        by = f"{weights_hash(folder)} {tokenizer_hash(read_tokenizer(folder, by))} {task.max_length}"
    text = text_sha256(json.dumps([contents, settings.column]))
    return Origin(rows=rows.manifest.rows_sha256, text=text, by=by, k=settings.k)


def _content(file: str, about: str) -> str:
    path = local_file(file)
    if not path.is_file():
        raise RoadError(f"{about}: {file} is no file: expected texts, a line each (.txt), JSON lines or a table")
    try:
        return file_sha256(path)
    except OSError as error:
        raise RoadError(f"{about}: {file}: cannot be read: {error.strerror}") from None


def texts(settings: NeighbourKD) -> Iterator[Example]:
    """The distinct unlabelled texts of all files, in order."""
    seen: set[int] = set()
    for file in settings.files:
        columns = {"id": None, "text_b": None} | ({} if settings.column is None else {"text_a": settings.column})
        spec = DatasetSpec(task="", train=file, columns=Columns(**columns))
        for example in Source.of(file, "train", spec, scored=False).examples(Reading()):
            key = int(text_sha256(example.text_a)[:16], 16)
            if key not in seen:
                seen.add(key)
                yield example


def find(
    folder: Path, origin: Origin, dataset: str, settings: NeighbourKD, rows: FeatureSet, task: Task, batch_size: int
) -> None:
    """Finds the neighbours of a data set's rows and commits them to a folder. RoadError where there are too few texts."""
    try:
        number = sum(1 for _ in texts(settings))
    except RoadError as error:
        raise RoadError(f"road.distill.neighbours.{dataset}: {error}") from None
    by_words = settings.by == BY_WORDS
    vectors = (
        search.tfidf(example.text_a for example in texts(settings))
        if by_words
        else search.pooled(head_folder(settings.by, ""), task.max_length, batch_size)
    )
    own = [example.text_a for example in rows.examples()]
    with progress(number, f"neighbours of {dataset}", "text") as bar:
        found, cosines = search.nearest(
            own, (example.text_a for example in texts(settings)), vectors, settings.k, bar.update
        )
    if (cosines == -np.inf).any():
        raise RoadError(
            f"road.distill.neighbours.{dataset}: {counted(number, 'distinct text')}, one of which may be the row's own: "
            f"too few for k = {settings.k} neighbours: give more text, or a smaller k"
        )
    taken, places = np.unique(found, return_inverse=True)
    try:
        write(folder, taken, places.reshape(found.shape), cosines, settings, {"origin": origin, "searched": number})
    except OSError as error:
        raise RoadError(
            f"{folder}: cannot be written: {error.strerror or error}: free space, or set road.distill.cache"
        ) from None
    if origin != origin_of(dataset, settings, rows, task):
        shutil.rmtree(folder)
        raise RoadError(f"road.distill.neighbours.{dataset}.text: changed while it was read: start again")


def write(
    folder: Path,
    taken: np.ndarray,
    places: np.ndarray,
    cosines: np.ndarray,
    settings: NeighbourKD,
    facts: Mapping[str, Any],
) -> None:
    """Commits the texts with the numbers `taken`, and [rows, k] their places there, to a folder."""
    staged = folder.with_name(f".{folder.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    wanted = set(taken.tolist())
    with (staged / TEXTS).open("w", encoding="utf-8") as file:
        for number, example in enumerate(texts(settings)):
            if number in wanted:
                file.write(json.dumps({"text": example.text_a, "where": example.where}, ensure_ascii=False) + "\n")
    np.save(staged / TABLE, places.astype(np.int32))
    np.save(staged / SIMILARITY, cosines)
    seal(staged, Retrieved, facts)
    commit(staged, folder)


def open_neighbours(
    objective: Objective,
    heads: Heads,
    train: Mapping[str, FeatureSet],
    tokenizer: Any,
    ranks: Ranks,
    *,
    cache: str,
    config: str,
) -> dict[str, Neighbours]:
    """The neighbours of a run by data set; train: its rows. RoadError for those that are not there or do not hold."""
    found, verified = {}, ranks.local_rank == 0
    for dataset, settings in neighbours_of(objective).items():
        task = heads.task(dataset)
        folder = folder_of(objective, cache, dataset)
        origin = origin_of(dataset, settings, train[dataset], task)
        kept, numbers = open_folder(folder, origin, dataset, verified, config)
        rows = encoded(folder, dataset, task, cache, verified, tokenizer)
        found[dataset] = Neighbours(rows, numbers, settings, text_sha256(kept.model_dump_json()))
    return found


def encoded(folder: Path, dataset: str, task: Task, cache: str, verified: bool, tokenizer: Any) -> FeatureSet:
    """The texts in a folder of neighbours as a tokenizer's model reads them."""
    spec = DatasetSpec(task="", train=str(folder / TEXTS), columns=Columns(text_a="text", text_b=None))
    return load_features(texts_of(dataset), "train", spec, task, tokenizer, cache, verified, labelled=False)
