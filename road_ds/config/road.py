"""The `"road"` block of a run, validated: one JSON is one run."""

from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from road_ds.common.errors import RoadError, nearest
from road_ds.common.strict_json import quote
from road_ds.config.deepspeed_keys import Engine
from road_ds.config.settings import NAME, Count, Number, Strict

KEPT = 2  # checkpoints of a run at work: where the newest is damaged, the one before it serves


class Columns(Strict):
    """Which columns of a table hold what: a column's name, or its position (from 0) in a file without a header.

    A null that is given says that there is none; what is not given is looked for by well-known names. label: several columns
    hold 0 or 1 each, and their names are the labels.
    """

    id: str | int | None = None
    text_a: str | int | None = None
    text_b: str | int | None = None
    label: str | int | Annotated[list[str | int], Field(min_length=2)] | None = None
    answers: str | int | None = None
    choices: str | int | Annotated[list[str | int], Field(min_length=2)] | None = None

    @model_serializer(mode="wrap")
    def given(self, dump: Callable[["Columns"], dict[str, Any]]) -> dict[str, Any]:
        """What is given alone: read again, it means the same."""
        return {key: value for key, value in dump(self).items() if key in self.model_fields_set}


class DatasetSpec(Strict):
    """Where a data set's rows are and which task they train."""

    task: str
    catalog: str | None = None  # the entry that says where the rows are; train and dev then name its parts
    format: str | None = None
    train: str | None = None
    dev: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    path: str | None = None
    config: str | None = None
    shape: str | None = None  # the publisher's layout, a key of publishers.SHAPES
    keep: dict[str, str] = {}  # only rows whose columns hold these values
    columns: Columns = Columns()
    header: bool = True
    quoting: bool | None = None
    label_separator: Annotated[str, Field(min_length=1)] | None = None  # between the labels of a row in one text
    label_map: dict[str, str] = {}
    drop_labels: list[str] = []
    skip_bad: Number = 0
    max_rows: Count | None = None
    sample: Count | None = None  # so many rows, drawn by `sample_seed`
    sample_seed: Annotated[int, Field(ge=0)] = 0
    stratified: bool = False  # the sample holds as many rows of each label
    drop_duplicates: bool = False
    negatives: Annotated[float, Field(ge=0, le=1)] = 0.0  # unanswerable copies of so many questions of the train part
    both_orders: bool = False  # a pair trains as (a, b) and as (b, a)
    history_turns: Number = 0
    context_words: Count | None = None


class ModelSpec(Strict):
    """A pretrained encoder by hub name or folder, or an architecture with fresh weights.

    layers: those of the pretrained encoder that the model begins with, counted from 0, or how many, evenly spaced.
    """

    name: str | None = None
    architecture: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] = {}
    layers: Count | Annotated[list[Number], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def one_source(self):
        if (self.name is None) == (self.architecture is None):
            raise ValueError('give either "name" (a hub name or folder) or "architecture" (fresh weights), not both')
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError('fresh weights need a "tokenizer": a hub name, a folder, or "sample:tokenizer"')
        return self

    @model_validator(mode="after")
    def layers_of_a_pretrained_model(self):
        if self.layers is None:
            return self
        if self.name is None:
            raise ValueError(
                '"layers" are taken from a pretrained model ("name"); fresh weights have config.num_hidden_layers'
            )
        if "num_hidden_layers" in self.config:
            raise ValueError('"layers" says how deep the model is: leave config.num_hidden_layers out')
        if isinstance(self.layers, list) and self.layers != sorted(set(self.layers)):
            raise ValueError(f"layers: got {self.layers}; expected different layers in rising order, counted from 0")
        return self


class Power(Strict):
    """Draws a data set of n rows with probability proportional to n ** power."""

    power: Annotated[float, Field(ge=0, le=1)]


class Weights(Strict):
    """Draws each data set with the probability given here (normalised to sum to 1)."""

    weights: dict[str, Annotated[float, Field(ge=0)]]


def _kind_of_sampling(value: Any) -> str | None:
    """Which kind of `road.sampling` is meant, so that an error speaks of that one only."""
    if isinstance(value, dict):
        return next((kind.__name__ for kind in (Power, Weights) if kind.__name__.lower() in value), None)
    return type(value).__name__ if isinstance(value, Power | Weights) else "name"


Sampling = Annotated[
    Annotated[Literal["uniform", "proportional"], Tag("name")]
    | Annotated[Power, Tag("Power")]
    | Annotated[Weights, Tag("Weights")],
    Discriminator(
        _kind_of_sampling,
        custom_error_type="sampling",
        custom_error_message='expected "uniform", "proportional", {"power": 0.5} or {"weights": {"data set": 1}}',
    ),
]


class PlanSettings(Strict):
    """Which rows are trained on, in which order, and for how long."""

    passes: Annotated[int, Field(ge=1, le=10_000)] = 4
    steps: Annotated[int, Field(ge=1, le=10**8)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1e4)] | None = None
    sampling: Sampling = "uniform"
    length_window: Number = 2048
    seed: Annotated[int, Field(ge=0)] = 0


class RateSettings(Strict):
    """The learning rate over steps and layers."""

    warmup: Annotated[float, Field(ge=0, le=1e9)] = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0


class SpeedSettings(Strict):
    """What makes a step cheaper and leaves its results."""

    padding: Literal["auto", "free", "grouped", "fixed"] = "auto"
    compile: bool = False
    join_micro_batches: bool = False
    activation_checkpointing: bool = False
    apex: Literal["auto", "on", "off"] = "auto"


class FreeLBSettings(Strict):
    """Ascent on the word embeddings of each row (FreeLB; its published code's adv-steps, adv-lr, adv-init-mag, adv-max-norm, norm-type)."""

    steps: Annotated[int, Field(ge=2, le=100)] = 3
    step_size: Annotated[float, Field(gt=0)] = 0.1
    init_magnitude: Annotated[float, Field(ge=0)] = 0.1
    max_norm: Annotated[float, Field(ge=0)] = 0.6  # 0: no limit
    norm: Literal["l2", "linf"] = "l2"


class LoopSettings(Strict):
    """What happens between steps, and when a run gives up."""

    evaluate_every: Number = 0
    log_every: Count = 10
    gradient_cosine_every: Number = 0
    save_every: Number = 500
    max_skipped_steps: Count = 50
    step_timeout: Annotated[float, Field(gt=0, le=1e9)] = 1800.0


class RoadConfig(PlanSettings, RateSettings, SpeedSettings, LoopSettings):
    """The `"road"` block. Every key has one meaning and no second name; a part of a run is handed the part it needs."""

    beside: ClassVar[Collection[str]] = Engine.model_fields  # what stands beside the block, not in it

    model: ModelSpec
    tasks: dict[str, dict[str, Any]]
    datasets: dict[str, DatasetSpec]
    use: list[str] | None = None
    heads: Literal["per_task", "per_dataset"] = "per_task"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    distill: dict[str, Any] | None = None
    freelb: FreeLBSettings | None = None
    select: Literal["last", "best"] = "last"
    patience: Count | None = None  # evaluations in a row that may be no better than the best before; null: any number
    evaluate_batch_size: Count = 64
    shared_encoder: bool = False
    languages: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$")]] = []
    keep: Count | None = None  # checkpoints that stay; null: KEPT while the run is at work, none of a finished one
    output: str | None = None
    cache: str = "~/.cache/road_ds"
    _file: str = PrivateAttr("FILE")  # where the block was read, for messages that give a command line

    @field_validator("model", mode="before")
    @classmethod
    def model_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("tasks", "datasets")
    @classmethod
    def names_are_safe(cls, value: dict) -> dict:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(
                    f"the name {quote(name)} may hold only letters, digits and . _ - (100 at most, no dot in front)"
                )
        if not value:
            raise ValueError("at least one is needed")
        return value

    @model_validator(mode="after")
    def fits_together(self, info: ValidationInfo):
        if not info.context and (faults := [fault for _, fault in self.unfit()]):
            raise ValueError("\n".join(faults))
        return self

    def unfit(self) -> Iterator[tuple[set[str], str]]:
        """What does not go together, each with the keys that it is about."""
        if (self.steps is None) == (self.epochs is None):
            yield {"steps", "epochs"}, "give either steps or epochs, not both and not neither"
        if self.warmup > 1 and self.warmup != int(self.warmup):
            yield {"warmup"}, f"warmup {self.warmup} is neither a share (0 to 1) nor a whole number of steps"
        if self.shared_encoder and "encoder" in map(self.head_of, self.datasets):
            yield (
                {"shared_encoder", "datasets", "heads"},
                'shared_encoder writes a folder called "encoder" beside the heads\', and a head is called so: call it otherwise',
            )
        yield from (({"use", "datasets"}, fault) for fault in self._unfit_use())
        for name, spec in self.datasets.items():
            if spec.task not in self.tasks:
                yield (
                    {"tasks"},
                    f"datasets.{name}.task is {quote(spec.task)}, which road.tasks does not define"
                    f"{nearest(spec.task, self.tasks)}; defined: {', '.join(self.tasks)}",
                )
        for name in self.tasks:
            if not any(spec.task == name for spec in self.datasets.values()):
                yield {"datasets"}, f"tasks.{name} has no data set: add one to road.datasets or remove the task"
        if isinstance(self.sampling, Weights):
            given, known = set(self.sampling.weights), set(self.datasets)
            if given != known:
                yield (
                    {"sampling", "datasets"},
                    f"sampling.weights names {sorted(given)}, but road.datasets has {sorted(known)}",
                )
            if sum(self.sampling.weights.values()) <= 0:
                yield {"sampling"}, "sampling.weights are all zero"
        if not (
            self.evaluate_every and any(self.datasets[n].dev for n in self.use or self.datasets if n in self.datasets)
        ):
            needed = "the evaluations of a run: set evaluate_every, and give a data set a dev part"
            if self.select == "best":
                yield {"select", "evaluate_every", "use", "datasets"}, f'select "best" chooses among {needed}'
            if self.patience is not None:
                yield {"patience", "evaluate_every", "use", "datasets"}, f"patience counts {needed}"

    def _unfit_use(self) -> Iterator[str]:
        for name in self.use or ():
            if name not in self.datasets:
                yield (
                    f"use names {quote(name)}, which is no data set{nearest(name, self.datasets)}; "
                    f"road.datasets has {', '.join(self.datasets)}"
                )
        if self.use is not None and (not self.use or len(set(self.use)) != len(self.use)):
            yield f"use: got {self.use}; expected one or more data sets, each once; leave it out for all"

    def narrowed(self) -> "RoadConfig":
        """The same settings with only the data sets that `use` names, in the file's order, and their tasks."""
        if self.use is None:
            return self
        datasets = {name: spec for name, spec in self.datasets.items() if name in self.use}
        tasks = {name: task for name, task in self.tasks.items() if any(s.task == name for s in datasets.values())}
        sampling = self.sampling
        if isinstance(sampling, Weights):
            sampling = Weights(weights={name: weight for name, weight in sampling.weights.items() if name in datasets})
            if not any(sampling.weights.values()):
                raise RoadError(f"road.sampling.weights are all zero for the data sets that road.use names: {self.use}")
        distill = self.distill
        left_out = self.datasets.keys() - datasets.keys()
        for key in ("teachers", "neighbours"):
            if distill is not None and isinstance(distill.get(key), dict):
                distill = {**distill, key: {k: v for k, v in distill[key].items() if k not in left_out}}
        changed = {"datasets": datasets, "tasks": tasks, "sampling": sampling, "distill": distill, "use": None}
        return self.model_copy(update=changed)

    @property
    def file(self) -> str:
        """The file that the block was read from."""
        return self._file

    def head_of(self, dataset: str) -> str:
        """The head that a data set trains: its task's, or its own under `heads: per_dataset`."""
        return dataset if self.heads == "per_dataset" else self.datasets[dataset].task


def unlabelled_of(config: RoadConfig) -> list[tuple[str, str]]:
    """The files of unlabelled texts in which a run has neighbours, each with its data set."""
    near = (config.distill or {}).get("neighbours") or {}
    texts = {name: block["text"] for name, block in near.items()}
    return [(name, file) for name, of in texts.items() for file in (of if isinstance(of, list) else [of])]


def models_of(config: RoadConfig) -> list[str]:
    """The models and tokenizers that a run reads: its own start, teachers, generators, the encoders that found neighbours."""
    distill = config.distill or {}
    taught, near, adversarial = (distill.get(key) or {} for key in ("teachers", "neighbours", "adversarial"))
    generator = adversarial.get("generator") if isinstance(adversarial, dict) else None
    generators = (generator, *(task.get("generator") for task in config.tasks.values()))
    return [
        name for name in (config.model.name, config.model.tokenizer, *generators) if isinstance(name, str) and name
    ] + [
        *(name for names in taught.values() for name in names),
        *(block["by"] for block in near.values() if block.get("by", "tfidf") != "tfidf"),
    ]
