"""The host's side of a launch, free of Triton: what a kernel is started with, and the one place that starts it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .plan import MOST_REGISTERS

# Fused multiply-add is asked for by name: its default differs between Triton versions.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


def start(kernel, grid: tuple[int, ...], *args, warps: int, registers: int = MOST_REGISTERS, **constants) -> Any:
    """Starts a kernel, if there is anything to do; what Triton compiled, else None."""
    if all(grid):
        return kernel[grid](*args, **constants, num_warps=warps, maxnreg=registers, **OPTIONS)
    return None


def on_device(tensor: Tensor) -> AbstractContextManager:
    """A context in which kernels start on the tensor's own device."""
    elsewhere = tensor.is_cuda and tensor.device.index != torch.cuda.current_device()
    return torch.cuda.device(tensor.device) if elsewhere else nullcontext()


def strides(logits: list[Tensor], vec: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Row strides in vectors and class strides in elements, as the kernels take them."""
    return tuple(tensor.stride(0) // vec for tensor in logits), tuple(tensor.stride(1) for tensor in logits)
