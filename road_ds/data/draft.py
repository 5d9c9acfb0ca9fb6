"""A first configuration from files with rows: what each file holds, and a task for it. The user's own settings stay."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.common.errors import RoadError
from road_ds.common.log import counted
from road_ds.common.strict_json import quote
from road_ds.config.road import DatasetSpec
from road_ds.config.settings import validated
from road_ds.data.files import format_of_texts, splits_of
from road_ds.data.readers import Example, Reading
from road_ds.data.sources import Part, Source, unlabelled
from road_ds.data.words import word_places

MODEL = "google-bert/bert-base-uncased"
PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "valid", "validation", "val", "test", "eval"), "dev"),
}
PART = re.compile(rf"(?:^|[._-])({'|'.join(PARTS)})(?=[._-]|$)", re.IGNORECASE)
SHARE = 0.1  # of the rows, for dev where no part is
MEASURED = 10_000  # rows whose length is looked at
LENGTHS = (128, 256, 512)  # tokens
CLASSES = 1000  # beyond, labels are hardly classes


@dataclass
class Seen:
    """What the rows of a data set are like."""

    rows: int = 0
    pairs: int = 0
    questions: int = 0
    lists: int = 0
    tagged: int = 0  # lists of a label for each word
    choices: Counter[int] = field(default_factory=Counter)  # how many a question has
    unlabelled: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    words: list[int] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Takes in a row."""
        self.rows += 1
        self.pairs += example.text_b is not None
        self.questions += example.answers is not None
        choices = [choice.text for choice in example.choices or ()]
        self.choices.update([len(choices)] * bool(choices))
        label = example.label
        self.lists += isinstance(label, tuple)
        self.tagged += isinstance(label, tuple) and len(label) == len(word_places(example.text_a))
        self.unlabelled += label is None
        self.labels.update(label if isinstance(label, tuple) else () if label is None else (str(label),))
        if len(self.words) < MEASURED:
            longest = max(choices, key=len, default="")
            self.words.append(len(f"{example.text_a} {example.text_b or ''} {longest}".split()))


def data_sets_of(paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The `datasets` block that files make: those that differ in `train` and `dev` alone are parts of one.

    A folder that save_to_disk wrote is one with its splits. RoadError for a file that is not there, and where two are the same
    part of one.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not Path(path).exists():
            raise RoadError(f"{path}: does not exist: expected a file with rows, or a folder of such files")
        splits = splits_of(path)
        name, own = saved(path, splits) if splits else lone(path)
        block = found.setdefault(re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "rows", {})
        for part in ("train", "dev"):
            if part in own and part in block:
                raise RoadError(
                    f"{path}: {block[part]} is the {part} part of {name} already: rename one, or give one of them"
                )
        block |= own
    for name, block in found.items():
        if "train" not in block:
            raise RoadError(
                f"{block['dev']}: by its name the dev part of {name}: give its train part too, or rename it"
            )
        block.setdefault("dev", SHARE)
    return found


def lone(path: str) -> tuple[str, dict[str, Any]]:
    """The name of the data set that a file, or a folder of files, is a part of; and that part."""
    stem = Path(path).name.removesuffix(".gz")
    stem = stem if Path(path).is_dir() else Path(stem).stem
    part = PART.search(stem)
    if part is None:
        return stem, {"train": path}
    name = PART.sub("", stem, count=1).strip("._-") or Path(path).resolve().parent.name
    return name, {PARTS[part[1].lower()]: path}


def saved(folder: str, splits: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name of the data set that a folder of save_to_disk has, and its block; of one split a share is held out.

    RoadError where several splits are there, and none is the train part by its name.
    """
    named = {
        part: [s for word in PARTS if PARTS[word] == part for s in splits if s.lower() == word]
        for part in ("train", "dev")
    }
    if len(splits) == 1:
        named = {"train": [*splits], "dev": []}
    if not named["train"]:
        raise RoadError(
            f"{folder}: has the splits {', '.join(map(quote, splits))}, none of which is the train part by its name: expected one "
            "called train: save it so"
        )
    dev = named["dev"][0] if named["dev"] else SHARE
    return Path(folder).resolve().name, {"format": "disk", "path": folder, "train": named["train"][0], "dev": dev}


def draft(data: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """A run's file over the data sets in `data`, whose settings stay, and a line on each data set.

    RoadError where rows cannot be read, or do not say what they teach.
    """
    road = data["road"]
    tasks, said = {}, []
    for name, block in road["datasets"].items():
        task, seen = task_of(name, block)
        tasks[name] = task
        block.setdefault("task", name)
        said.append((name, f"{seen.rows:,}", task["type"], in_words(seen, task), block["dev"]))
    passes = max(count for count in (1, 2, 4) if count <= len(tasks))
    defaults = {"model": MODEL, "passes": passes, **({} if "steps" in road else {"epochs": 3})}
    given = road.get("tasks", {})
    own = {"tasks": {**{name: task for name, task in tasks.items() if road["datasets"][name]["task"] == name}, **given}}
    optimizer = {"type": "AdamW", "params": {"lr": 5e-5, "weight_decay": 0.01}}
    return {"train_batch_size": 32, "optimizer": optimizer, **data, "road": {**defaults, **road, **own}}, said


def task_of(name: str, block: Mapping[str, Any]) -> tuple[dict[str, Any], Seen]:
    """The task that a data set's rows teach, and what they are like."""
    spec = validated(DatasetSpec, {"task": name, **block}, f"datasets.{name}")
    seen = Seen()
    text = spec.format in (None, "text", "document") and format_of_texts(str(spec.train)) is not None
    for example in rows_of(name, spec, labelled=not text):
        seen.add(example)
    if text:
        return {"type": "replaced_tokens"}, seen
    if seen.questions:
        return {"type": "span_qa"}, seen
    if seen.unlabelled:
        raise RoadError(
            f"datasets.{name}: {spec.train}: {counted(seen.unlabelled, 'row')} of {seen.rows:,} without a label: add "
            f"--set road.datasets.{name}.columns.label=COLUMN"
        )
    length = {"max_length": tokens} if (tokens := tokens_of(seen.words)) > LENGTHS[0] else {}
    if seen.choices:
        return {"type": "multiple_choice", **length}, seen
    if seen.tagged == seen.rows:
        return {"type": "token_classification", "labels": ordered(seen.labels), **length}, seen
    if seen.lists:
        return {"type": "multi_label", "labels": ordered(seen.labels), **length}, seen
    if fractional(seen.labels):
        return {"type": "regression", **length}, seen
    if len(seen.labels) > min(CLASSES, max(2, seen.rows / 2)):
        few = ", ".join(map(quote, islice(seen.labels, 3)))
        raise RoadError(
            f"datasets.{name}: {spec.train}: {len(seen.labels):,} different labels in {seen.rows:,} rows ({few} ...): neither "
            f"classes nor fractions: add --set road.datasets.{name}.columns.label=COLUMN"
        )
    return {"type": "classification", "labels": ordered(seen.labels), **length}, seen


def rows_of(name: str, spec: DatasetSpec, labelled: bool) -> Iterator[Example]:
    """The rows of both parts; a held-out share is among the first."""
    whole = spec.model_copy(update={"dev": None}) if isinstance(spec.dev, float) else spec
    whole = whole if labelled else unlabelled(whole)
    parts: tuple[Part, ...] = ("train",) if whole.dev is None else ("train", "dev")
    for part in parts:
        yield from Source.of(name, part, whole).examples(Reading())


def fractional(labels: Iterable[str]) -> bool:
    """Whether labels are numbers, and not all of them whole."""
    try:
        return any(not float(label).is_integer() for label in labels) and len(set(labels)) > 2
    except ValueError:
        return False


def ordered(labels: Iterable[str]) -> list[str]:
    """Labels in order: numbers by value, others by name."""
    return sorted(labels, key=lambda label: (0, int(label), label) if re.fullmatch(r"-?\d+", label) else (1, 0, label))


def tokens_of(words: list[int]) -> int:
    """A maximum that 19 of 20 rows keep to, of LENGTHS; a word is taken for one and a half tokens."""
    wanted = 1.5 * float(np.percentile(words, 95)) + 3
    return next((length for length in LENGTHS if length >= wanted), LENGTHS[-1])


def in_words(seen: Seen, task: Mapping[str, Any]) -> str:
    """What was seen, for the user to check."""
    texts = "documents" if task["type"] == "replaced_tokens" else "pairs" if seen.pairs else "single texts"
    if seen.choices:
        fewest, most = min(seen.choices), max(seen.choices)
        return f"questions with {fewest} choices" if fewest == most else f"questions with {fewest} to {most} choices"
    labels = task.get("labels")
    if labels is None:
        return texts
    if task["type"] == "token_classification":
        return f"{texts}; {counted(len(labels), 'tag')}: {', '.join(labels[:6])}{' ...' if len(labels) > 6 else ''}"
    shares = ", ".join(f"{label} {seen.labels[label] / seen.rows:.0%}" for label in labels[:6])
    return f"{texts}; {counted(len(labels), 'label')}: {shares}{' ...' if len(labels) > 6 else ''}"
