"""One JSON = one run: DeepSpeed's own keys, and ours in the `"road"` block beside them."""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from road_ds.errors import RoadError
from road_ds.strict_json import load_json, parse_json, quote

NAME = re.compile(r"[A-Za-z0-9._-]+")

# DeepSpeed ignores top-level keys that it does not know; these are the ones it reads (0.19).
ENGINE_KEYS = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
    *("optimizer", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "fp16", "bf16"),
    *("torch_autocast", "data_types", "communication_data_type", "prescale_gradients", "gradient_predivide_factor"),
    *("sparse_gradients", "disable_allgather", "activation_checkpointing", "checkpoint", "aio", "compile"),
    *("tensorboard", "wandb", "comet", "csv_monitor", "comms_logger", "flops_profiler", "wall_clock_breakdown"),
    *("memory_breakdown", "dump_state", "steps_per_print", "log_level", "disable_python_gc"),
}
REFUSED_KEYS = {
    "scheduler": "the learning-rate schedule is ours, so that layer-wise rates survive it: "
    'use road.warmup and road.schedule ("linear", "cosine" or "constant")',
    "amp": "DeepSpeed has removed its amp block: use road.precision (auto, bf16, fp16 or fp32)",
}

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """A block of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), frozen=True)


class Columns(Strict):
    """Which columns of a table hold what: a column's name, or its position (from 0) in a file without a header."""

    id: str | int | None = None
    text_a: str | int | None = None
    text_b: str | int | None = None
    label: str | int | None = None
    answers: str | int | None = None


class DatasetSpec(Strict):
    """Where a data set's rows are and which task they train."""

    task: str
    format: str | None = None
    train: str | None = None
    dev: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    path: str | None = None
    config: str | None = None
    columns: Columns = Columns()
    header: bool = True
    quoting: bool | None = None
    label_map: dict[str, str] = {}
    drop_labels: list[str] = []
    skip_bad: Annotated[int, Field(ge=0)] = 0
    max_rows: Annotated[int, Field(ge=1)] | None = None


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


class RoadConfig(Strict):
    """The `"road"` block. Every key has one meaning and no second name."""

    model: ModelSpec
    tasks: dict[str, dict[str, Any]]
    datasets: dict[str, DatasetSpec]
    heads: Literal["per_task", "per_dataset"] = "per_task"
    passes: Annotated[int, Field(ge=1)] = 4
    steps: Annotated[int, Field(ge=1)] | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    warmup: Annotated[float, Field(ge=0)] = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    layer_lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    sampling: Literal["uniform", "proportional"] | Power | Weights = "uniform"
    length_window: Annotated[int, Field(ge=0)] = 2048
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    evaluate_batch_size: Annotated[int, Field(ge=1)] = 64
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=0)] = 500
    keep: Annotated[int, Field(ge=1)] = 2
    max_skipped_steps: Annotated[int, Field(ge=1)] = 50
    step_timeout: Annotated[float, Field(gt=0)] = 1800.0
    output: str | None = None
    cache: str = "~/.cache/road_ds"

    @field_validator("model", mode="before")
    @classmethod
    def model_by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("tasks", "datasets")
    @classmethod
    def names_are_safe(cls, value: dict) -> dict:
        for name in value:
            if not NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may hold only letters, digits and . _ -")
        if not value:
            raise ValueError("at least one is needed")
        return value

    @model_validator(mode="after")
    def fits_together(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs, not both and not neither")
        if self.warmup > 1 and self.warmup != int(self.warmup):
            raise ValueError(f"warmup {self.warmup} is neither a share (0 to 1) nor a whole number of steps")
        for name, spec in self.datasets.items():
            if spec.task not in self.tasks:
                raise ValueError(
                    f"datasets.{name}.task is {spec.task!r}, which road.tasks does not define"
                    f"{nearest(spec.task, self.tasks)}; defined: {', '.join(self.tasks)}"
                )
        for name in self.tasks:
            if not any(spec.task == name for spec in self.datasets.values()):
                raise ValueError(f"tasks.{name} has no data set: add one to road.datasets or remove the task")
        if isinstance(self.sampling, Weights):
            given, known = set(self.sampling.weights), set(self.datasets)
            if given != known:
                raise ValueError(f"sampling.weights names {sorted(given)}, but road.datasets has {sorted(known)}")
            if sum(self.sampling.weights.values()) <= 0:
                raise ValueError("sampling.weights are all zero")
        return self

    def head_of(self, dataset: str) -> str:
        """The head that a data set trains: its task's, or its own under `heads: per_dataset`."""
        return dataset if self.heads == "per_dataset" else self.datasets[dataset].task


def nearest(word: str, known: Any) -> str:
    """`"; did you mean 'x'?"` for the known word that is most alike, or nothing."""
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def validated(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a `model`. RoadError that names the key, the value and the nearest known key otherwise."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise RoadError("\n".join(_describe(model, detail, where) for detail in error.errors())) from None


def _describe(model: type[BaseModel], detail: Any, where: str) -> str:
    path = [str(part) for part in detail["loc"] if not str(part).startswith(("function-", "literal["))]
    key = ".".join([where, *path])
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key{nearest(path[-1], _keys_at(model, path[:-1]))}"
    if detail["type"] == "missing":
        return f"{key}: is required"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']}"
    return f"{key}: got {quote(detail['input'])}; {detail['msg'][0].lower() + detail['msg'][1:]}"


def _keys_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The keys a block may hold, following `path` from `model` (through lists and dicts of blocks too)."""
    for part in path:
        field = model.model_fields.get(part)
        if field is not None:
            blocks = re.findall(r"[A-Z]\w+", str(field.annotation).replace("road_ds.config.", ""))
            found = [block for name in blocks if isinstance(block := globals().get(name), type)]
            if not found:
                return []
            model = found[0]
    return list(model.model_fields)


def override(data: dict[str, Any], assignment: str) -> None:
    """Sets one key in place from `KEY=VALUE`; VALUE is JSON, or plain text where it is not."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise RoadError(f"--set {assignment}: expected KEY=VALUE, for example --set road.steps=20")
    try:
        value = parse_json(text)
    except ValueError:
        value = text
    *parents, last = key.split(".")
    block = data
    for parent in parents:
        block = block.setdefault(parent, {})
        if not isinstance(block, dict):
            raise RoadError(f"--set {assignment}: {parent!r} is not a block of settings")
    block[last] = value


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[RoadConfig, dict[str, Any]]:
    """The validated `"road"` block, and DeepSpeed's part of the file as a dict with its defaults written out.

    `road.output` is filled in as `runs/<config name>`. Raises RoadError for anything that does not hold; sizes that
    depend on the number of processes are fitted later, by `fit_batch`.
    """
    data = load_json(path)
    if not isinstance(data, dict):
        raise RoadError(f'{path}: expected an object with DeepSpeed\'s keys and a "road" block')
    for assignment in overrides:
        override(data, assignment)
    road = data.pop("road", None)
    if road is None:
        raise RoadError(f'{path}: has no "road" block (model, tasks, datasets, steps ...)')
    for key in data:
        if key in REFUSED_KEYS:
            raise RoadError(f"{path}: {key}: {REFUSED_KEYS[key]}")
        if key not in ENGINE_KEYS:
            raise RoadError(f"{path}: {key}: unknown key{nearest(key, ENGINE_KEYS | {'road'})}")
    config = validated(RoadConfig, road, f"{path}: road")
    output = config.output or f"runs/{Path(path).stem}"
    return config.model_copy(update={"output": output}), _engine_defaults(data, str(path))


def _engine_defaults(ds: dict[str, Any], where: str) -> dict[str, Any]:
    """DeepSpeed's part with what it would choose silently written out."""
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        value = ds.get(key)
        if key == "train_batch_size" and value is None:
            raise RoadError(f"{where}: train_batch_size: is required (rows per step, over all passes and GPUs)")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise RoadError(f"{where}: {key}: got {quote(value)}; input should be a whole number above 0")
    clipping = ds.setdefault("gradient_clipping", 1.0)
    if not isinstance(clipping, int | float) or isinstance(clipping, bool) or clipping < 0:
        raise RoadError(f"{where}: gradient_clipping: got {quote(clipping)}; input should be 0 (off) or above")
    optimizer = ds.setdefault("optimizer", {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}})
    if not isinstance(optimizer, dict) or not isinstance(optimizer.get("type"), str):
        raise RoadError(f'{where}: optimizer: expected {{"type": "AdamW", "params": {{"lr": ...}}}}')
    for key in optimizer:
        if key not in ("type", "params"):
            raise RoadError(f"{where}: optimizer.{key}: unknown key{nearest(key, ('type', 'params'))}")
    params = optimizer.setdefault("params", {})
    lr = params.get("lr") if isinstance(params, dict) else None
    if not isinstance(lr, int | float) or isinstance(lr, bool) or lr <= 0:
        raise RoadError(f"{where}: optimizer.params.lr: got {quote(lr)}; input should be a number above 0")
    zero = ds.setdefault("zero_optimization", {"stage": 0})
    if not isinstance(zero, dict):
        raise RoadError(f'{where}: zero_optimization: expected a block like {{"stage": 1}}')
    stage = zero.setdefault("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise RoadError(f"{where}: zero_optimization.stage: got {quote(stage)}; allowed: 0, 1, 2, 3")
    ds.setdefault("steps_per_print", 10**9)
    return ds


def fit_batch(ds: dict[str, Any], passes: int, world_size: int) -> dict[str, int]:
    """The three batch sizes DeepSpeed wants, so that each pass's rows divide into whole micro-batches over the ranks.

    A step's `train_batch_size` rows are `passes` draws; micro-batch and world size only decide in how many pieces they
    are computed. RoadError with the numbers and the sizes that would fit.
    """
    total = ds["train_batch_size"]
    if total % passes:
        raise RoadError(
            f"train_batch_size {total} does not divide into road.passes {passes} equal draws: "
            f"take {total - total % passes or passes} or {total + passes - total % passes} rows, or passes that divide {total}"
        )
    rows = total // passes
    fitting = [size for size in range(1, rows + 1) if rows % (size * world_size) == 0]
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
    """What was filled into the optimizer's settings, one line each: choices DeepSpeed would make by compiling code."""
    notes = []
    optimizer = ds["optimizer"]
    if optimizer["type"].lower() in ("adam", "adamw"):
        # DeepSpeed's own Adam compiles a CUDA or CPU extension at the first start; torch's is as fast when fused.
        if "torch_adam" not in optimizer["params"]:
            optimizer["params"]["torch_adam"] = True
            if device == "cuda":
                optimizer["params"]["fused"] = True
            notes.append(f"optimizer.params.torch_adam = true ({optimizer['type']} is torch's own)")
    elif ds["zero_optimization"]["stage"] > 0 and "zero_allow_untested_optimizer" not in ds:
        ds["zero_allow_untested_optimizer"] = True
        notes.append(f"zero_allow_untested_optimizer = true ({optimizer['type']} under ZeRO)")
    return notes
