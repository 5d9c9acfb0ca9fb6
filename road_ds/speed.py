"""What makes a step cheaper and changes its results by rounding at most: packed rows, fused kernels, compilation, memory.

Activation checkpointing stands here too: it buys memory with time.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from road_ds import fused, internals
from road_ds.adamw import LayerwiseAdamW
from road_ds.config import RoadConfig, fit_buckets
from road_ds.data.batches import Mode
from road_ds.dropout import replace_dropout
from road_ds.errors import RoadError
from road_ds.linear import mkl_is_slow, replace_linear
from road_ds.model import MultiTaskModel, parameter_count
from road_ds.optim import parameter_groups, rate_shares

ADAMW = ("lr", "betas", "eps", "weight_decay")  # the settings of AdamW that decide on the update
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """Has glibc keep what is freed instead of giving it back to the system, from where it would come page by page.

    On a CPU the temporaries of each layer, megabytes each, come and go with every micro-batch: a quarter of a tiny model's step.
    Where a MALLOC_ variable is set, that holds; another libc is left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def fit_cpu(encoder: nn.Module) -> None:
    """Makes an encoder's step cheaper on a CPU: freed memory is kept, dropout and, where MKL is slow, products are faster.

    Heads stay as they are: theirs are small, and a head's shell would go on calling the layers that it was built with.
    """
    keep_freed_memory()
    replace_dropout(encoder)
    if mkl_is_slow():
        replace_linear(encoder)


def choose_padding(
    asked: str, obstacle: str, device: str, capability: tuple[int, int] | None, precision: str, compiled: bool
) -> tuple[Mode, str]:
    """The padding of a run, and why it is not the one asked for ("" when it is).

    obstacle: why the encoder cannot run packed rows, "" when it can; capability: the GPU's compute capability.
    """
    if asked in get_args(Mode) and asked != "free":
        return asked, ""  # type: ignore[return-value]
    if device == "cuda" and (capability is None or capability < (8, 0)):
        obstacle = obstacle or "this GPU has no attention for packed rows (compute capability 8.0)"
    elif device == "cuda" and precision == "fp32":
        obstacle = obstacle or "a GPU's attention for packed rows takes bf16 or fp16, not fp32"
    elif compiled:
        obstacle = obstacle or "road.compile is built for padded batches"
    if obstacle:
        return "grouped", f"road.padding is grouped, not free: {obstacle}"
    return "free", ""


def prepare(
    model: MultiTaskModel,
    config: RoadConfig,
    ds: dict[str, Any],
    device: str,
    capability: tuple[int, int] | None,
    precision: str,
) -> tuple[Mode, list[str]]:
    """The padding of the run, and what to say; the model is changed in place, before the engine takes it.

    RoadError for what was asked and cannot be.
    """
    if device == "cpu":
        fit_cpu(model.encoder)
    obstacle = model.use_packing()
    mode, note = choose_padding(config.padding, obstacle, device, capability, precision, config.compile)
    apex, remark = fused.use_apex(config.apex, device)
    if apex:
        remark = f"{fused.fuse_norms(model.encoder)} layer norms are NVIDIA Apex's"
    if config.activation_checkpointing:
        try:
            model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            raise RoadError(
                f"road.activation_checkpointing: transformers has none for {model.encoder.config.model_type}: leave it out"
            ) from None
    if config.compile:
        if ds["zero_optimization"]["stage"] == 3:
            raise RoadError(
                "road.compile: ZeRO 3 gathers weights between the layers, which a compiled encoder has no place for: "
                "use stage 2, or leave road.compile out"
            )
        model.encoder.compile(dynamic=True)  # one graph for batches of every width
    return mode, [text for text in (note, remark) if text]


def start_engine(
    model: MultiTaskModel, ds: dict[str, Any], layer_lr_decay: float, schedule: Callable[[Optimizer], LRScheduler]
) -> Any:
    """DeepSpeed's engine over a model, with layer-wise rates, and without what a step does not need.

    ds: DeepSpeed's settings, as `fit_batch`, `fit_precision` and `fit_optimizer` have completed them.
    """
    import deepspeed

    settings = ds["optimizer"]["params"]
    rates = {"lr": settings["lr"], "weight_decay": settings.get("weight_decay", 0.0)}
    ds = fit_buckets(ds, parameter_count(model))
    client = None
    if takes_pieces(ds):
        groups = parameter_groups(model, **rates, layer_lr_decay=1.0)
        client = LayerwiseAdamW(groups, **{key: settings[key] for key in ADAMW if key in settings})
        internals.support(LayerwiseAdamW)
        ds = {key: value for key, value in ds.items() if key != "optimizer"}
    else:
        groups = parameter_groups(model, **rates, layer_lr_decay=layer_lr_decay)
    shares = rate_shares(model, layer_lr_decay)
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=client, model_parameters=groups, config=ds, lr_scheduler=schedule
    )
    internals.lighten(engine)
    if client is not None:
        client.pieces = internals.pieces_of(engine, shares)
    return engine


def takes_pieces(ds: dict[str, Any]) -> bool:
    """Whether `LayerwiseAdamW` can stand for the optimizer that is asked for: torch's fused AdamW, on the device.

    Any other has a group for each rate, which costs an update of its own, and more around it.
    """
    name, params = ds["optimizer"]["type"], ds["optimizer"]["params"]
    return (
        name.lower() == "adamw"
        and bool(params.get("torch_adam") and params.get("fused"))
        and set(params) <= {*ADAMW, "torch_adam", "fused"}
        and not {"offload_optimizer", "offload_param", "zenflow"} & set(ds["zero_optimization"])
        and "data_types" not in ds
    )
