"""What makes a step cheaper and changes its results by rounding at most: packed rows, fused kernels, compilation, memory.

Activation checkpointing stands here too: it buys memory with time.
"""

import ctypes
import os
from typing import Any, get_args

from torch import nn

from road_ds.common.errors import RoadError
from road_ds.config.road import SpeedSettings
from road_ds.data.batches import Mode
from road_ds.models.apex import fuse_norms, use_apex
from road_ds.models.attention import plan_no_shapes
from road_ds.models.dropout import replace_dropout
from road_ds.models.linear import mkl_is_slow, replace_linear
from road_ds.models.multi_task import MultiTaskModel

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


def compile_layers(encoder: nn.Module, **settings: Any) -> None:
    """Compiles an encoder layer by layer: one graph serves all of them, and batches of every size. settings: torch.compile's."""
    layers = next(module for module in encoder.modules() if isinstance(module, nn.ModuleList))
    for layer in layers:
        layer.compile(dynamic=True, **settings)


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
    elif device == "cpu" and compiled:
        obstacle = obstacle or "on a CPU road.compile is built for padded batches"
    if obstacle:
        return "grouped", f"road.padding is grouped, not free: {obstacle}"
    return "free", ""


def prepare(
    model: MultiTaskModel,
    settings: SpeedSettings,
    ds: dict[str, Any],
    device: str,
    capability: tuple[int, int] | None,
    precision: str,
) -> tuple[Mode, list[str]]:
    """The padding of the run, and what to say; the model is changed in place, before the engine takes it.

    RoadError for what was asked and cannot be.
    """
    if device == "cpu":
        for stack in model.stacks():
            fit_cpu(stack)
    else:
        plan_no_shapes()
    obstacle = model.use_packing()
    mode, note = choose_padding(settings.padding, obstacle, device, capability, precision, settings.compile)
    apex, remark = use_apex(settings.apex, device)
    if apex:
        remark = f"{sum(map(fuse_norms, model.stacks()))} layer norms are NVIDIA Apex's"
    if settings.activation_checkpointing:
        try:
            for stack in model.stacks():
                stack.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError:
            raise RoadError(
                f"road.activation_checkpointing: transformers has none for {model.encoder.config.model_type}: leave it out"
            ) from None
    if settings.compile:
        if ds["zero_optimization"]["stage"] == 3:
            raise RoadError(
                "road.compile: ZeRO 3 gathers weights between the layers, which a compiled encoder has no place for: "
                "use stage 2, or leave road.compile out"
            )
        if model.comparison is not None and model.comparison.own.scores:
            raise RoadError(
                "road.compile: a compiled encoder does not show the attention scores that road.distill.layers compares: leave "
                "road.compile out, or take another method"
            )
        compile_layers(model.encoder)
    return mode, [text for text in (note, remark) if text]
