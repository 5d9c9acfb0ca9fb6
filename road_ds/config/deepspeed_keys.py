"""What DeepSpeed's part of a run's file may hold: DeepSpeed itself ignores what it does not know, or fails late."""

import inspect
import os
from collections.abc import Collection
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from road_ds.common.errors import nearest
from road_ds.config.trainer_words import HERE

Count = Annotated[int, Field(ge=1)]
Kind = Literal["fp32", "fp16", "bf16"]
Settings = dict[str, Any]

REFUSED = {
    "scheduler": "the learning-rate schedule is ours, so that layer-wise rates survive it: "
    'use road.warmup and road.schedule ("linear", "cosine" or "constant")',
    "amp": "DeepSpeed has removed its amp block: use road.precision (auto, bf16, fp16 or fp32)",
    "torch_autocast": "use road.precision (auto, bf16, fp16 or fp32)",
    "activation_checkpointing": "it acts only in models that call DeepSpeed's own checkpoint function, which these "
    "encoders do not: use road.activation_checkpointing",
}


class Block(BaseModel):
    """A block of DeepSpeed's settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Optimizer(Block):
    type: str
    params: Settings = {}


class DataTypes(Block):
    grad_accum_dtype: Kind | None = None
    param_dtype: Kind | None = None
    buffer_dtype: Kind | None = None


class Checkpoint(Block):
    tag_validation: Literal["Ignore", "Warn", "Fail"] = "Warn"
    load_universal: bool = False
    use_node_local_storage: bool = False
    parallel_write: Settings = {}
    writer: Settings | None = None


class FlopsProfiler(Block):
    enabled: bool = False
    recompute_fwd_factor: Annotated[float, Field(ge=0)] = 0.0
    profile_step: Count = 1
    module_depth: int = -1
    top_modules: Count = 1
    detailed: bool = True
    output_file: str | None = None


class AsyncIO(Block):
    block_size: Count = 2**20
    queue_depth: Count = 8
    intra_op_parallelism: Count = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


class Engine(Block):
    """The keys that DeepSpeed 0.19 reads. Blocks of which it has models of its own are checked against those."""

    train_batch_size: Annotated[int, Field(ge=1, lt=2**31, description="rows per step, over all passes and GPUs")]
    train_micro_batch_size_per_gpu: Count | Literal["auto"] = "auto"
    gradient_accumulation_steps: Count = 1
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    optimizer: Optimizer = Optimizer(type="AdamW")
    zero_optimization: Settings = {}
    zero_allow_untested_optimizer: bool = False
    zero_force_ds_cpu_optimizer: bool = True
    fp16: Settings = {}
    bf16: Settings = {}
    data_types: DataTypes = DataTypes()
    communication_data_type: Kind | None = None
    prescale_gradients: bool = False
    gradient_predivide_factor: Annotated[float, Field(gt=0)] = 1.0
    sparse_gradients: bool = False
    disable_allgather: bool = False
    checkpoint: Checkpoint = Checkpoint()
    aio: AsyncIO = AsyncIO()
    compile: Settings = {}
    tensorboard: Settings = {}
    wandb: Settings = {}
    comet: Settings = {}
    csv_monitor: Settings = {}
    comms_logger: Settings = {}
    flops_profiler: FlopsProfiler = FlopsProfiler()
    wall_clock_breakdown: bool = False
    memory_breakdown: bool = False
    dump_state: bool = False
    steps_per_print: Count = 10
    timers: Settings = {}
    log_level: str = "warning"
    disable_python_gc: bool = False


def misplaced(key: str, own: Collection[str]) -> str:
    """Why a key cannot stand among DeepSpeed's; `own`: those of the "road" block. Nothing where it can, and where it is misspelt."""
    inside = ""
    if key not in Engine.model_fields:
        if key in own:
            inside = 'belongs inside the "road" block'
        elif key not in HERE and not nearest(key, Engine.model_fields) and (meant := nearest(key, own)):
            inside = f'unknown key{meant} That belongs inside the "road" block'
    return REFUSED.get(key, inside)


@cache
def own_models() -> dict[str, type[BaseModel]]:
    """DeepSpeed's own models, by block."""
    _choose_accelerator()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.compile.config import CompileConfig
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return {
        "zero_optimization": DeepSpeedZeroConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "compile": CompileConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "comet": CometConfig,
        "csv_monitor": CSVConfig,
        "comms_logger": CommsLoggerConfig,
    }


@cache
def optimizers() -> dict[str, type]:
    """The optimizers by the name that DeepSpeed knows them under, its own in small letters."""
    _choose_accelerator()
    import torch
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import FusedLion

    unfit = ("Optimizer", "Adam", "AdamW", "Adagrad", "LBFGS", "Muon", "SparseAdam")  # need a closure, matrices ...
    torchs = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type) and name not in unfit}
    own = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
    return {**own, "lamb": FusedLamb, "lion": FusedLion, **torchs}


def optimizer_keys(kind: type, params: Settings) -> list[str]:
    """The settings that an optimizer takes. For Adam they depend on whose it is: torch's unless told otherwise."""
    keys = list(inspect.signature(kind).parameters)
    if kind.__name__ in ("Adam", "AdamW"):
        if not params.get("torch_adam", True):
            from deepspeed.ops.adam import FusedAdam

            keys = list(inspect.signature(FusedAdam).parameters)
        keys += ["torch_adam", "adam_w_mode", "fp32_optimizer_states"]
    return [key for key in keys if key != "params"]


def optimizer_fault(kind: type, params: Settings) -> str:
    """What a torch optimizer says against its settings, nothing where it takes them."""
    import torch

    if not kind.__module__.startswith("torch.") or not params.get("torch_adam", True):
        return ""
    known = inspect.signature(kind).parameters
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], **{key: value for key, value in params.items() if key in known})
    except Exception as error:
        return str(error)
    return ""


def _choose_accelerator() -> None:
    """Tells DeepSpeed, before it is imported, to run on the CPU where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
