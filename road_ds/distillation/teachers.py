"""Teachers: whose logits a batch is trained towards, read from soft targets on disk or computed beside the student."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from road_ds.common.digest import file_sha256, text_sha256
from road_ds.common.errors import Faults, RoadError
from road_ds.common.hub import expanded, head_folder, model_folder
from road_ds.common.ranks import Ranks
from road_ds.data.batch import Batch
from road_ds.data.features import FeatureSet
from road_ds.data.tokenizer import check_vocabulary, read_tokenizer, tokenizer_hash
from road_ds.distillation.average import AverageTeacher
from road_ds.distillation.layers.base import Comparison, LayerMethod
from road_ds.distillation.layers.maps import WHERE
from road_ds.distillation.neighbours import Neighbours
from road_ds.distillation.objective import Objective, Taught, Teaching
from road_ds.distillation.soft_targets import Origin, SoftTargets
from road_ds.models.configuration import check_lengths
from road_ds.models.export import read_task
from road_ds.models.predictor import Predictor
from road_ds.models.pretrained import read_config
from road_ds.models.states import NOTHING, Shape, States, Wanted
from road_ds.tasks.base import Task
from road_ds.tasks.labels import label_names, order_of, reordered
from road_ds.tasks.registry import Heads


class NoTeachers:
    """The teachers of a run that has none."""

    identity: Mapping[str, list[str]] = {}

    def __call__(self, batch: Batch) -> None:
        """Nothing, for every batch."""


def targets_folder(objective: Taught, cache: str, dataset: str, name: str) -> Path:
    """Where the soft targets of a teacher for a data set are kept: where the objective says, else in the run's cache."""
    root = expanded(objective.cache) if objective.cache else expanded(cache) / "soft_targets"
    place = str(Path(name).resolve()) if Path(name).exists() else name
    return root / dataset / f"{Path(name).name[:60]}-{text_sha256(place)[:12]}"


@dataclass(frozen=True)
class Pupil:
    """The data set that teachers are asked about: its rows, its head's task, the student's tokenizer, and who they are."""

    dataset: str
    head: str
    task: Task
    rows: FeatureSet
    tokenizer: Any
    teachers: tuple[str, ...]

    def accept(self, name: str) -> Path:
        """A teacher's folder. RoadError where its task, labels, tokenizer or length do not suit the data set."""
        folder = model_folder(head_folder(name, self.head), weights=False)
        theirs = read_task(folder)
        about = f"road.distill.teachers.{self.dataset}: {name}"
        if theirs.type != self.task.type:
            raise RoadError(f"{about} is a teacher of {theirs.type}, the data set's task is {self.task.type}")
        own, other = label_names(self.task), label_names(theirs)
        if sorted(own or ()) != sorted(other or ()):
            raise RoadError(f"{about} tells apart {other}, the data set's task {own}: they must have the same names")
        settings, tokenizer = read_config(folder, about), read_tokenizer(folder, about)
        check_vocabulary(tokenizer, settings, about)
        if not theirs.reads(self.rows.pairs):
            rows = {True: "pairs of texts", False: "lone texts", None: "both"}
            raise RoadError(
                f"{about} reads {rows[theirs.reads(True)]}, the data set's rows are {rows[self.rows.pairs]}"
            )
        if self.task.over_tokens and tokenizer_hash(tokenizer) != tokenizer_hash(self.tokenizer):
            raise RoadError(
                f"{about} has another tokenizer than the student: for spans, whose classes are tokens, it must be the same"
            )
        check_lengths(settings, {self.head: self.task})
        return folder

    def accept_beside(self, name: str) -> None:
        """As `accept`, for a teacher that reads the student's batches: RoadError where it has another tokenizer too."""
        if tokenizer_hash(read_tokenizer(self.accept(name), name)) != tokenizer_hash(self.tokenizer):
            raise RoadError(
                f"road.distill.teachers.{self.dataset}: {name} has another tokenizer than the student and cannot read its "
                'batches: set road.distill.source to "cached"'
            )

    def origin(self, name: str, folder: Path, dtype: str, states: bool) -> Origin:
        """What a teacher's soft targets for this data set would be made from; states: with the vectors of its layers."""
        settings = self.task.model_dump()
        shape = Shape.of(read_config(folder, name)) if states else None
        return Origin(
            dataset=self.dataset,
            teacher=weights_hash(model_folder(head_folder(name, self.head))),
            rows=self.rows.manifest.rows_sha256,
            features=len(self.rows),
            tokenizer=tokenizer_hash(read_tokenizer(folder, name)),
            windows={
                key: settings[key] for key in ("max_length", "doc_stride", "max_question_length") if key in settings
            },
            labels=label_names(self.task),
            per_label=self.task.numbers_per_label,
            student=tokenizer_hash(self.tokenizer) if self.task.rows_per_feature is None else "",
            dtype=dtype,
            vectors=None if shape is None else [shape.layers, shape.width],
        )


def weights_hash(folder: Path) -> str:
    """The hash of a model folder's configuration and weights."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    try:
        return text_sha256("".join(file_sha256(path) for path in files))
    except OSError as error:
        raise RoadError(f"{error.filename}: cannot be read: {error.strerror}") from None


class SomeTeachers:
    """What teachers of either source share. identity: the hash of each one's weights, by data set."""

    identity: Mapping[str, list[str]]
    wanted: Wanted = NOTHING

    def shapes(self) -> set[Shape]:
        """The different shapes of their encoders."""
        raise NotImplementedError

    def compare(self, method: LayerMethod, student: Shape, seed: int) -> Comparison:
        """How the layers of a student of this shape are compared with theirs, of which they give the states from now on."""
        first, *others = sorted(self.shapes())
        if others:
            sizes = ", ".join(f"{s.layers} layers of width {s.width}" for s in (first, *others))
            raise RoadError(f"{WHERE}: the teachers must have one depth and width (and number of heads), got {sizes}")
        comparison = method.compare(student, first, seed)
        self.wanted = comparison.theirs
        return comparison


class CachedTeachers(SomeTeachers):
    """Soft targets that `teach` has written, per data set."""

    def __init__(self, targets: Mapping[str, list[SoftTargets]], tasks: Mapping[str, Task], device: torch.device):
        self.targets, self.tasks, self.device = targets, tasks, device
        self.identity = {name: [source.teacher for source in sources] for name, sources in targets.items()}

    def shapes(self):
        kept = [source.shape for sources in self.targets.values() for source in sources]
        return {Shape(shape[0], shape[1], heads=0) for shape in kept if shape is not None}

    def __call__(self, batch: Batch) -> Teaching | None:
        """What the teachers say of a batch, as wide as the student's; None where the data set has no teacher."""
        targets = self.targets.get(batch.dataset)
        if targets is None:
            return None
        task = self.tasks[batch.dataset]
        rows = task.rows_per_feature
        if rows is None:  # each feature has its own number of them, all of as many classes
            classes = len(label_names(task) or ())
            flat = [np.concatenate([source[feature] for feature in batch.features]) for source in targets]
            logits = np.stack([values.reshape(-1, classes) for values in flat])
            return Teaching(self._moved(logits), self._states(batch, targets))
        found = [[source[feature].reshape(rows, -1) for feature in batch.features] for source in targets]
        width = batch.input_ids.shape[1] if task.over_tokens else max(v.shape[1] for v in found[0])
        logits = np.zeros((len(targets), len(batch.features), rows, width), dtype=targets[0].dtype)
        for teacher, features in enumerate(found):
            for feature, values in enumerate(features):
                logits[teacher, feature, :, : values.shape[1]] = values
        return Teaching(self._moved(logits).flatten(1, 2), self._states(batch, targets))

    def _states(self, batch: Batch, targets: Sequence[SoftTargets]) -> States | None:
        """The first tokens' vectors of the layers that are compared, each [teachers, features, width]."""
        if not self.wanted.hidden:
            return None
        layers = np.array(self.wanted.hidden) - 1  # there are none of the embeddings
        vectors = np.stack([[source.vectors(feature)[layers] for feature in batch.features] for source in targets])
        return States(dict(zip(self.wanted.hidden, self._moved(vectors).unbind(2), strict=True)))

    def _moved(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return (tensor.pin_memory() if self.device.type == "cuda" else tensor).to(self.device, non_blocking=True)

    def rows(self) -> int:
        """How many rows the teachers read when the soft targets were written."""
        return sum(len(source) for sources in self.targets.values() for source in sources)


class OnlineTeachers(SomeTeachers):
    """Frozen models that read each batch beside the student, for what cannot be cached. They share its tokenizer."""

    def __init__(self, teachers: Mapping[str, list[Predictor]], tasks: Mapping[str, Task]):
        self.teachers, self.tasks = teachers, tasks
        hashes = {name: weights_hash(model_folder(name)) for name in {t.name for own in teachers.values() for t in own}}
        self.identity = {name: [hashes[teacher.name] for teacher in own] for name, own in teachers.items()}

    def shapes(self):
        return {Shape.of(teacher.model.config) for own in self.teachers.values() for teacher in own}

    def __call__(self, batch: Batch) -> Teaching | None:
        """What the teachers say of a batch; None where the data set has no teacher."""
        if batch.dataset not in self.teachers:
            return None
        logits, states = [], []
        with torch.no_grad():
            for teacher in self.teachers[batch.dataset]:
                outputs, seen = teacher.observed(batch, self.wanted)
                logits.append(self.ordered(outputs.logits, teacher, batch.dataset))
                states.append(seen)
        return Teaching(torch.stack(logits), None if self.wanted == NOTHING else States.stacked(states))

    def ordered(self, logits: torch.Tensor, teacher: Predictor, dataset: str) -> torch.Tensor:
        """A teacher's logits in float32, their classes in the order of the data set's task."""
        task = self.tasks[dataset]
        order = order_of(label_names(teacher.task), label_names(task))
        return reordered(logits, order, task.numbers_per_label).float()

    def models(self) -> list[Any]:
        """The teachers' models, each once."""
        return list({id(own.model): own.model for teachers in self.teachers.values() for own in teachers}.values())

    def compare(self, method, student, seed):
        comparison = super().compare(method, student, seed)
        if comparison.theirs.scores:
            for teacher in {id(one): one for own in self.teachers.values() for one in own}.values():
                teacher.model.set_attn_implementation("eager")  # the one that computes them where they can be seen
        return comparison


AnyTeachers = NoTeachers | CachedTeachers | OnlineTeachers | AverageTeacher
Pupils = Mapping[str, Pupil]  # by data set, those of neighbours too


def open_teachers(
    objective: Objective,
    heads: Heads,
    train: Mapping[str, FeatureSet],
    tokenizer: Any,
    ranks: Ranks,
    *,
    cache: str,
    config: str,
    neighbours: Mapping[str, Neighbours] | None = None,
) -> AnyTeachers:
    """The teachers of a run, verified; train: its rows by data set. RoadError for what does not suit.

    cache: the run's; config: its file, for messages that give a command line; neighbours: by data set those whose texts
    its teachers are asked about too.
    """
    if not isinstance(objective, Taught):
        return NoTeachers()
    taught = objective.teachers or train  # an average names nobody and teaches all
    pupils = {name: pupil(name, heads, train[name], tokenizer, objective) for name in taught}
    near = {
        found.texts.name: replace(pupils[name], dataset=found.texts.name, rows=found.texts)
        for name, found in (neighbours or {}).items()
    }
    return SOURCES[objective.source](objective, pupils | near, ranks, cache, config)


def cached(objective: Taught, pupils: Pupils, ranks: Ranks, cache: str, config: str) -> CachedTeachers:
    """The teachers whose soft targets `teach` has written."""
    targets: dict[str, list[SoftTargets]] = {}
    for dataset, own in pupils.items():
        targets[dataset] = []
        for name in own.teachers:
            origin = own.origin(name, own.accept(name), objective.dtype, objective.compared is not None)
            folder = targets_folder(objective, cache, dataset, name)
            targets[dataset].append(SoftTargets(folder, origin, name, verify=ranks.local_rank == 0, config=config))
    return CachedTeachers(targets, {name: own.task for name, own in pupils.items()}, ranks.device)


def check_teachers(
    objective: Objective, heads: Heads, train: Mapping[str, FeatureSet], tokenizer: Any, faults: Faults
) -> None:
    """Collects what does not suit about the teachers of a run; their weights and soft targets are not looked at."""
    if not isinstance(objective, Taught):
        return
    for dataset in objective.teachers:
        if dataset in train:
            own = pupil(dataset, heads, train[dataset], tokenizer, objective)
            accept = own.accept_beside if objective.source == "online" else own.accept
            for name in own.teachers:
                with faults.caught():
                    accept(name)


def online(objective: Taught, pupils: Pupils, ranks: Ranks, cache: str, config: str) -> OnlineTeachers:
    """The teachers that read the batches beside the student."""
    loaded: dict[str, Predictor] = {}
    found = {dataset: beside(own, loaded) for dataset, own in pupils.items()}
    return OnlineTeachers(found, {name: own.task for name, own in pupils.items()})


def average(objective: Taught, pupils: Pupils, ranks: Ranks, cache: str, config: str) -> AverageTeacher:
    """The student's own average."""
    return AverageTeacher(objective.decay, {name: own.head for name, own in pupils.items()})


# Where teaching comes from, by `road.distill.source`. A new one is a class and a function here or beside this file, and a line.
SOURCES: dict[str, Callable[[Taught, Pupils, Ranks, str, str], Any]] = {
    "cached": cached,
    "online": online,
    "average": average,
}


def beside(own: Pupil, loaded: dict[str, Predictor]) -> list[Predictor]:
    """The teachers of a data set, ready to read its batches beside the student. loaded: those that are, by folder."""
    found = []
    for name in own.teachers:
        own.accept_beside(name)
        place = head_folder(name, own.head)
        if place not in loaded:
            loaded[place] = Predictor.load(place)
        found.append(loaded[place])
    return found


def pupil(dataset: str, heads: Heads, rows: FeatureSet, tokenizer: Any, objective: Taught) -> Pupil:
    """A data set of a run as its teachers see it. RoadError where its task has nothing to learn from one."""
    if not (task := heads.task(dataset)).supervised:
        raise RoadError(
            f"road.distill.teachers.{dataset}: {task.type} learns from the text alone: leave its teachers out"
        )
    beyond = {"layers": objective.compared, "neighbours": objective.neighbours, "adversarial": objective.adversarial}
    if task.several_sequences and (key := next((key for key, value in beyond.items() if value), None)):
        raise RoadError(f"road.distill.{key}: is not there for {task.type} ({dataset}): leave it out, or its teachers")
    named = tuple(objective.teachers.get(dataset, ()))
    return Pupil(dataset, heads.of[dataset], heads.task(dataset), rows, tokenizer, named)
