"""The host's side of a launch, free of Triton: what a kernel is started with, and the one place that starts it."""

from __future__ import annotations

from typing import Any

import torch

from .plan import MOST_REGISTERS

# Fused multiply-add is asked for by name: its default differs between Triton versions.
OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}


def start(kernel, grid: tuple[int, ...], *args, warps: int, registers: int = MOST_REGISTERS, **constants) -> Any:
    """Starts a kernel, if there is anything to do; what Triton compiled, else None."""
    if all(grid):
        return kernel[grid](*args, **constants, num_warps=warps, maxnreg=registers, **OPTIONS)
    return None


class Launch:
    """A kernel with its device, programs, last arguments and constants: called with the first arguments, it starts.

    Triton looks at every argument of every launch (dtype, 16-byte boundaries, numbers that are 1 or multiples of 16) for what it
    has compiled for such arguments. A Launch asks once and keeps the answer. It must therefore be kept by all of that: it is
    made by a function that is cached by the layouts of its tensors (plan.Layout). Floats and fresh tensors need no key: Triton
    has one kind of float, and an allocator gives boundaries of 16 bytes. The interpreter compiles nothing and is asked again.
    """

    def __init__(
        self, device: torch.device, kernel, programs: int, *last: Any, warps: int, registers: int, **constants: Any
    ) -> None:
        self._device, self._kernel, self._grid, self._last = device, kernel, (programs, 1, 1), last
        self._options = {"warps": warps, "registers": registers, **constants}
        self._rest = (*last, *(constants[name] for name in kernel.arg_names if name in constants))
        self._again: Any = None

    def __call__(self, *first: Any) -> None:
        if self._device.type == "cuda" and self._device.index != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                self(*first)
        elif self._again is not None:
            self._again(*first, *self._rest)
        else:
            compiled = start(self._kernel, self._grid, *first, *self._last, **self._options)
            self._again = None if compiled is None else compiled[self._grid]
