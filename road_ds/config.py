"""One JSON = one run: DeepSpeed's own keys, and ours in the `"road"` block beside them."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from road_ds import deepspeed_keys
from road_ds.data import catalog
from road_ds.errors import Faults, RoadError, nearest
from road_ds.strict_json import flat_keys, half_character, load_json, parse_json, quote
from road_ds.trainer_words import HERE

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # it becomes a file name

Model = TypeVar("Model", bound=BaseModel)


# A number beyond is a slip, and more than the program can count through.
Count = Annotated[int, Field(ge=1, le=10**9)]
Number = Annotated[int, Field(ge=0, le=10**9)]


class Strict(BaseModel):
    """A block of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=(), frozen=True)


class Columns(Strict):
    """Which columns of a table hold what: a column's name, or its position (from 0) in a file without a header.

    A null that is given says that there is none; what is not given is looked for by well-known names.
    """

    id: str | int | None = None
    text_a: str | int | None = None
    text_b: str | int | None = None
    label: str | int | None = None
    answers: str | int | None = None

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
    """A pretrained encoder by hub name or folder, or an architecture with fresh weights."""

    name: str | None = None
    architecture: str | None = None
    tokenizer: str | None = None
    config: dict[str, Any] = {}

    @model_validator(mode="after")
    def one_source(self):
        if (self.name is None) == (self.architecture is None):
            raise ValueError('give either "name" (a hub name or folder) or "architecture" (fresh weights), not both')
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError('fresh weights need a "tokenizer": a hub name, a folder, or "sample:tokenizer"')
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


class RoadConfig(Strict):
    """The `"road"` block. Every key has one meaning and no second name."""

    model: ModelSpec
    tasks: dict[str, dict[str, Any]]
    datasets: dict[str, DatasetSpec]
    use: list[str] | None = None
    heads: Literal["per_task", "per_dataset"] = "per_task"
    passes: Annotated[int, Field(ge=1, le=10_000)] = 4
    steps: Annotated[int, Field(ge=1, le=10**8)] | None = None
    epochs: Annotated[float, Field(gt=0, le=1e4)] | None = None
    warmup: Annotated[float, Field(ge=0, le=1e9)] = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    sampling: Sampling = "uniform"
    length_window: Number = 2048
    padding: Literal["auto", "free", "grouped", "fixed"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    compile: bool = False
    activation_checkpointing: bool = False
    apex: Literal["auto", "on", "off"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    distill: dict[str, Any] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    select: Literal["last", "best"] = "last"
    evaluate_every: Number = 0
    evaluate_batch_size: Count = 64
    log_every: Count = 10
    gradient_cosine_every: Number = 0
    save_every: Number = 500
    keep: Count = 2
    max_skipped_steps: Count = 50
    step_timeout: Annotated[float, Field(gt=0, le=1e9)] = 1800.0
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
        if self.select == "best" and not (
            self.evaluate_every and any(self.datasets[n].dev for n in self.use or self.datasets if n in self.datasets)
        ):
            yield (
                {"select", "evaluate_every", "use", "datasets"},
                'select "best" chooses among the evaluations of a run: set evaluate_every, and give a data set a dev part',
            )

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
        if distill is not None and isinstance(distill.get("teachers"), dict):
            left_out = self.datasets.keys() - datasets.keys()
            distill = {**distill, "teachers": {k: v for k, v in distill["teachers"].items() if k not in left_out}}
        changed = {"datasets": datasets, "tasks": tasks, "sampling": sampling, "distill": distill, "use": None}
        return self.model_copy(update=changed)

    @property
    def file(self) -> str:
        """The file that the block was read from."""
        return self._file

    def head_of(self, dataset: str) -> str:
        """The head that a data set trains: its task's, or its own under `heads: per_dataset`."""
        return dataset if self.heads == "per_dataset" else self.datasets[dataset].task


def validated(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`. RoadError that names the key, the value and the nearest known key otherwise."""
    if (text := half_character(data)) is not None:
        raise RoadError(f"{where}: {quote(text)} holds half a character: mend the text")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RoadError(_described(model, data, error, where)) from None


def _described(model: type[BaseModel], data: Any, error: ValidationError, where: str) -> str:
    described: dict[str, list[str]] = {}  # key -> what is wrong with it, once per allowed type
    for detail in error.errors():
        path = _keys(detail, data)
        fault = _fault(model, detail, path)
        faults = described.setdefault(".".join(path), [])
        faults.append(fault.split("; ", 1)[-1] if faults and fault.startswith("got ") else fault)
    between = ": " if where.endswith(".json") else "."
    return "\n".join(
        f"{where}{key and between + key}: {line}"
        for key, faults in described.items()
        for line in " or ".join(dict.fromkeys(faults)).split("\n")
    )


def sound(
    model: type[Model], data: Any, where: str, faults: Faults, entries: tuple[str, ...] = ()
) -> tuple[Model | None, set[str]]:
    """`data` as a `model` without what does not hold, which `faults` collects, and the keys that it was under.

    None where the rest is no such model either. entries: the blocks of named entries, which lose only the faulty ones.
    """
    context = {"parts": True}
    try:
        return model.model_validate(data, context=context), set()
    except ValidationError as error:
        faults.add(_described(model, data, error, where))
        paths = [path for detail in error.errors() if (path := _keys(detail, data))]
    left = dict(data) if isinstance(data, dict) else {}
    left |= {key: {**left[key]} for key in entries if isinstance(left.get(key), dict)}
    for key, *inner in paths:
        block, name = (left.get(key, {}), inner[0]) if key in entries and inner else (left, key)
        block.pop(name, None)
    lacking = {path[0] for path in paths}
    with suppress(ValidationError):
        return model.model_validate(left, context=context), lacking
    return None, lacking


def _keys(detail: Any, data: Any) -> list[str]:
    """The keys that lead to a fault in `data`: pydantic's own path also holds the names of a union's types."""
    path = []
    for part in detail["loc"]:
        if part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int):
            path.append(str(part))
            data = data[part]
    return [*path, str(detail["loc"][-1])] if detail["type"] == "missing" else path


def _fault(model: type[BaseModel], detail: Any, path: list[str]) -> str:
    message = detail["msg"][0].lower() + detail["msg"][1:]
    if detail["type"] == "extra_forbidden":
        if model is RoadConfig and path[-1] in deepspeed_keys.Engine.model_fields and path[-1] not in HERE:
            return 'unknown key; it belongs beside the "road" block, not inside'
        return f"unknown key{_meant(path[-1], _known_keys(model, path[:-1]))}"
    if detail["type"] == "missing":
        about = model.model_fields[path[-1]].description if path[-1] in model.model_fields else None
        return f"is required ({about})" if about else "is required"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] in ("model_type", "dict_type"):
        message = "expected a block { }"
    return f"got {quote(detail['input'])}; {message}"


def _meant(key: str, known: Iterable[str]) -> str:
    return f"; here it is {HERE[key]}" if key in HERE else nearest(key, known)


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that the block at `path` may hold; what is no key of a block on the way is a name or a position."""
    models = [model]
    for part in path:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if fields:
            models = [block for field in fields for block in _blocks([field.annotation, *field.metadata])]
    return [key for m in models for key in m.model_fields]


def _blocks(annotations: Iterable[Any]) -> list[type[BaseModel]]:
    """The models inside type annotations, such as `dict[str, DatasetSpec] | None`."""
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        else:
            found += _blocks(get_args(annotation))
    return found


def setting(assignment: str) -> tuple[str, Any]:
    """Key and value of `KEY=VALUE`; VALUE is JSON, or plain text where it is not."""
    key, equals, text = assignment.partition("=")
    if not equals or not all(key.split(".")):
        raise RoadError(f"--set {assignment}: expected KEY=VALUE, for example --set road.steps=20")
    try:
        return key, parse_json(text)
    except ValueError:
        return key, text


def override(data: dict[str, Any], assignment: str) -> None:
    """Sets one key in place from `KEY=VALUE`."""
    key, value = setting(assignment)
    *parents, last = key.split(".")
    block = data
    for parent in parents:
        block = block.setdefault(parent, {})
        if not isinstance(block, dict):
            raise RoadError(f"--set {assignment}: {parent!r} is not a block of settings")
    block[last] = value


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[RoadConfig, dict[str, Any]]:
    """The validated `"road"` block, and DeepSpeed's part of the file as it is given.

    `road.output` is filled in as `runs/<config name>`, and `road.use` applied. Raises RoadError for anything that does not hold; sizes that
    depend on the number of processes or the device are fitted later, by `fit_batch`, `fit_precision` and `fit_optimizer`.
    """
    faults = Faults()
    config, ds = read_config(path, overrides, faults)
    faults.end()
    return config, ds


def read_config(
    path: str | Path, overrides: list[str] | tuple[str, ...], faults: Faults
) -> tuple[RoadConfig, dict[str, Any]]:
    """As `load_config`, with the faults collected and what is left without the faulty parts, to be looked at further."""
    if half_character(str(path)) is not None:
        raise RoadError(f"{quote(str(path))}: the path is not UTF-8: rename the file or folder")
    data = load_json(path)
    if not isinstance(data, dict):
        raise RoadError(f'{path}: expected an object with DeepSpeed\'s keys and a "road" block')
    for assignment in overrides:
        override(data, assignment)
    for key in unwritable(data):
        faults.add(f"{path}: {key}: holds a NUL or half a character, which no file or folder can have in its name")
    for key, value in flat_keys(data).items():
        if isinstance(value, int) and abs(value) >= 2**63:
            faults.add(f"{path}: {key}: got {quote(value)}; expected a number below 2^63")
    faults.end()
    road = data.pop("road", None)
    if road is None:
        raise RoadError(f'{path}: has no "road" block (model, tasks, datasets, steps ...){nearest("road", data)}')
    for key in [*data]:
        if fault := deepspeed_keys.misplaced(key, RoadConfig.model_fields):
            faults.add(f"{path}: {key}: {fault}")
            del data[key]
    check_engine(data, str(path), faults)
    try:
        road = catalog.expand(road) if isinstance(road, dict) else road
    except RoadError as error:
        faults.add(f"{path}: road.{error}")
        raise faults.all() from None
    config, lacking = sound(RoadConfig, road, f"{path}: road", faults, ("datasets", "tasks"))
    if config is None:
        raise faults.all()
    for keys, fault in config.unfit():
        if not keys & lacking:
            faults.add(f"{path}: road: {fault}")
    with faults.caught():
        config = config.narrowed()
    output = str(Path(config.output or f"runs/{Path(path).stem}").expanduser())
    config = config.model_copy(update={"output": output})
    config._file = str(path)
    return config, data


def unwritable(value: Any, key: str = "") -> Iterator[str]:
    """The keys under which a text stands that neither a path nor UTF-8 can hold."""
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        yield quote(key)[1:-1]
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from unwritable(inner, f"{key}.{name}" if key else str(name))
            yield from unwritable(name, f"{key}.{name}" if key else str(name))


def check_engine(ds: dict[str, Any], where: str, faults: Faults) -> None:
    """Collects unknown keys and values that do not hold in DeepSpeed's part, inside its blocks too, and takes them out."""
    for key in sound(deepspeed_keys.Engine, ds, where, faults)[1]:
        ds.pop(key, None)
    checks: dict[str, Callable[[dict[str, Any], str], None]] = {
        block: partial(_check_block, model) for block, model in deepspeed_keys.own_models().items()
    }
    for key, check in {**checks, "optimizer": _check_optimizer}.items():
        if key in ds:
            try:
                check(ds[key], f"{where}: {key}")
            except RoadError as error:
                faults.add(str(error))
                del ds[key]


def _check_block(model: type[BaseModel], block: dict[str, Any], where: str) -> None:
    enabled, stage = block.get("enabled", False), block.get("stage", 0)
    if not isinstance(enabled, bool):
        raise RoadError(f"{where}.enabled: got {quote(enabled)}; input should be true or false")
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise RoadError(f"{where}.stage: got {quote(stage)}; allowed: 0, 1, 2, 3")
    validated(model, block, where)


def _check_optimizer(block: dict[str, Any], where: str) -> None:
    name, params = block["type"], block.get("params", {})
    known = deepspeed_keys.optimizers()
    kind = known.get(name) or known.get(name.lower())
    if kind is None:
        raise RoadError(f"{where}.type: got {quote(name)}{nearest(name, known)}; allowed: {', '.join(known)}")
    keys = deepspeed_keys.optimizer_keys(kind, params)
    faults = Faults()
    for key in params:
        if key not in keys:
            faults.add(f"{where}.params.{key}: unknown key of {name}{_meant(key, keys)}")
    lr = params.get("lr")
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not 0 < lr < float("inf"):
        faults.add(f"{where}.params.lr: got {quote(lr)}; input should be a number above 0")
    elif fault := deepspeed_keys.optimizer_fault(kind, params):
        faults.add(f"{where}.params: {name} does not take {quote(params, 200)}: {fault}")
    faults.end()


def fit_batch(ds: dict[str, Any], passes: int, world_size: int) -> dict[str, int]:
    """The three batch sizes DeepSpeed wants, so that each pass's rows divide into whole micro-batches over the ranks.

    A step's `train_batch_size` rows are `passes` draws; micro-batch and world size only decide in how many pieces they
    are computed. RoadError with the numbers and the sizes that would fit.
    """
    total = ds["train_batch_size"]
    if total % passes:
        fit = sorted({max(total - total % passes, passes), total - total % passes + passes})
        raise RoadError(
            f"train_batch_size {total} does not divide into road.passes {passes} equal draws: "
            f"take {' or '.join(map(str, fit))} rows, or passes that divide {total}"
        )
    rows = total // passes
    fitting = _divisors(rows // world_size) if rows % world_size == 0 else []
    micro = ds.get("train_micro_batch_size_per_gpu", fitting[-1] if fitting else 1)
    if micro not in fitting:
        sizes = ", ".join(map(str, fitting)) or f"none: train_batch_size must be a multiple of {passes * world_size}"
        raise RoadError(
            f"train_micro_batch_size_per_gpu {micro} x {world_size} processes does not divide the {rows} rows of a pass "
            f"(train_batch_size {total} / passes {passes}); micro-batch sizes that fit {world_size} processes: {sizes}"
        )
    accumulation = total // (micro * world_size)
    given = ds.get("gradient_accumulation_steps", accumulation)
    if given != accumulation:
        raise RoadError(
            f"gradient_accumulation_steps {given} does not fit: train_batch_size {total} / (micro-batch {micro} x "
            f"{world_size} processes) = {accumulation}; leave the key out, it follows from the others"
        )
    return {
        "train_batch_size": total,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def fit_precision(ds: dict[str, Any], precision: str, device: str, capability: tuple[int, int] | None) -> str:
    """The precision of the run, "bf16", "fp16" or "fp32", and DeepSpeed's block for it written into `ds`.

    `capability` is the GPU's compute capability, None on CPU. `auto` is bf16 from 8.0, fp16 below, fp32 on CPU.
    """
    given = [kind for kind in ("fp16", "bf16") if (ds.get(kind) or {}).get("enabled")]
    if len(given) == 2:
        raise RoadError("fp16 and bf16 are both enabled: keep one")
    if given and precision != "auto":
        raise RoadError(
            f"road.precision is {precision!r} and the {given[0]} block is enabled too: give one of the two "
            f"(the block when you want to set its loss scale, road.precision otherwise)"
        )
    if given:
        precision = given[0]
    elif precision == "auto":
        precision = "fp32" if capability is None else "bf16" if capability >= (8, 0) else "fp16"
    if precision == "bf16" and capability is not None and capability < (8, 0):
        raise RoadError(
            f"bf16 is not supported by this GPU (compute capability {capability[0]}.{capability[1]}, "
            'needs 8.0): use road.precision "fp16"'
        )
    if precision == "fp16" and device == "cpu":
        raise RoadError('fp16 does not run on CPU: use road.precision "fp32" or "bf16" (or "auto")')
    if precision != "fp32":
        ds[precision] = {**(ds.get(precision) or {}), "enabled": True}
    return precision


def fit_optimizer(ds: dict[str, Any], device: str) -> list[str]:
    """What was filled into `ds` where the file is silent and DeepSpeed would choose by itself, one line each."""
    notes = []

    def fill(block: dict[str, Any], key: str, value: Any, shown: str, why: str = "") -> None:
        if key not in block:
            block[key] = value
            notes.append(f"{shown}{key} = {json.dumps(value)}{why and f' ({why})'}")

    fill(ds, "optimizer", {"type": "AdamW", "params": {"lr": 1e-4}}, "")
    fill(ds, "gradient_clipping", 1.0, "", "0 is off")
    half = any((ds.get(kind) or {}).get("enabled") for kind in ("fp16", "bf16"))
    fill(ds, "zero_optimization", {"stage": int(half)}, "")
    fill(ds["zero_optimization"], "stage", int(half), "zero_optimization.")
    if half and ds["zero_optimization"]["stage"] == 0:
        raise RoadError(
            "zero_optimization.stage: got 0 in half precision, where DeepSpeed steps Adam once before the training and "
            "reports scaled gradient norms: use stage 1, which costs nothing on one process"
        )
    ds.setdefault("steps_per_print", 10**9)  # the run prints its own lines
    ds.setdefault("timers", {"throughput": {"enabled": False}})  # it would wait for the device twice a micro-batch
    name, params = ds["optimizer"]["type"], ds["optimizer"].setdefault("params", {})
    adam = name.lower() in ("adam", "adamw")
    fill(params, "weight_decay", 0.01 if adam else 0.0, "optimizer.params.", "none on biases and norms")
    if adam and "offload_optimizer" not in ds["zero_optimization"]:
        # DeepSpeed's own Adam compiles a CUDA or CPU extension at the first start; torch's is as fast when fused.
        fill(params, "torch_adam", True, "optimizer.params.", f"{name} is torch's own: nothing is compiled")
        if params["torch_adam"] and "foreach" not in params:
            fill(params, "fused", True, "optimizer.params.")
    if not adam and ds["zero_optimization"]["stage"] > 0:
        fill(ds, "zero_allow_untested_optimizer", True, "", f"{name} under ZeRO")
    return notes


def fit_buckets(ds: dict[str, Any], parameters: int) -> dict[str, Any]:
    """`ds` for the engine, with ZeRO's bucket of gradients bounded by the model's size where the file is silent.

    DeepSpeed would hold 5e8 elements, 1 GB in half precision, for any model.
    """
    zero = ds["zero_optimization"]
    if zero["stage"] == 0:
        return ds
    return ds | {"zero_optimization": {"reduce_bucket_size": min(500_000_000, parameters)} | zero}
