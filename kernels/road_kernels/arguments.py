"""Checks of what a caller passed: a ValueError names the argument, what came and what is allowed.

Shapes, dtypes, devices and Python numbers are checked always. Values inside tensors (labels, lengths) are checked on
CPU tensors only: to look at a GPU tensor the host would have to wait for the device. There a label outside its row's
classes makes the row's loss NaN, and lengths are cut to 0 ... classes, so that no memory outside the row is read.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import NoReturn

import torch
from torch import Tensor

IMPLEMENTATIONS = ("auto", "triton", "torch")
REDUCTIONS = ("mean", "sum", "none")
TRITON = importlib.util.find_spec("triton") is not None
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # Triton, too, looks once, when it is imported
MOST_TEACHERS = 63  # the kernels keep who is right in the bits of one integer


def refuse(name: str, came: object, allowed: str) -> NoReturn:
    raise ValueError(f"{name}: got {came}; allowed: {allowed}")


def describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {value.dtype} on {value.device}"
    return repr(value)


def check_number(name: str, value: object, inside: bool, allowed: str) -> None:
    if not inside:
        refuse(name, describe(value), allowed)


def is_number(value: object) -> bool:
    # A tensor is refused: turning it into a number would make the host wait for the device.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_logits(name: str, logits: object) -> None:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] < 1:
        refuse(name, describe(logits), "floating-point logits [rows, classes] with at least one class")


def check_like(name: str, value: Tensor, shape: tuple[int, ...], device: torch.device, floating: bool) -> None:
    fits = isinstance(value, Tensor) and value.shape == shape and value.device == device
    if not fits or value.is_floating_point() != floating or value.is_complex() or value.dtype == torch.bool:
        kind = "floating-point" if floating else "integer"
        refuse(name, describe(value), f"a {kind} tensor {list(shape)} on {device}")


def check_teacher_argument(teacher: object) -> None:
    """The outer shape of `teacher`, before it is taken apart."""
    allowed = "None, [rows, classes], [teachers, rows, classes] or a list of [rows, classes]"
    if isinstance(teacher, Tensor):
        if teacher.dim() not in (2, 3) or (teacher.dim() == 3 and teacher.shape[0] == 0):
            refuse("teacher", describe(teacher), allowed)
    elif teacher is not None and (not isinstance(teacher, (list, tuple)) or not teacher):
        refuse("teacher", describe(teacher), allowed)


def check_teachers(teachers: list[Tensor], shape: tuple[int, ...], device: torch.device) -> None:
    rows = len(shape) == 2 and shape[1] > 0
    for index, logits in enumerate(teachers):
        if rows and logits.shape == shape and logits.device == device and logits.is_floating_point():
            continue  # the usual case, soon seen: this is asked of every teacher at every loss
        name = f"teacher[{index}]" if len(teachers) > 1 else "teacher"
        check_logits(name, logits)
        check_like(name, logits, shape, device, floating=True)
    if len(teachers) > MOST_TEACHERS:
        refuse("teacher", f"{len(teachers)} teachers", f"at most {MOST_TEACHERS}")


def check_weighting(
    teachers: list[Tensor],
    labels: Tensor | None,
    wrong_scale: float | None,
    teacher_weights: Tensor | None,
    rows: int,
    device: torch.device,
) -> None:
    if teacher_weights is not None:
        if wrong_scale is not None:
            refuse("teacher_weights", "both teacher_weights and wrong_scale", "one of the two")
        if not teachers:
            refuse("teacher_weights", describe(teacher_weights), "only together with a teacher")
        check_like("teacher_weights", teacher_weights, (len(teachers), rows), device, floating=True)
    if wrong_scale is not None:
        if not teachers:
            refuse("wrong_scale", wrong_scale, "only together with a teacher")
        if labels is None:
            refuse("wrong_scale", f"{wrong_scale} without labels", "Weighted KD needs labels to know who is right")
        # At M / (M - 1) a lone right teacher among M would get weight 0, above it a negative one.
        most = len(teachers) / (len(teachers) - 1) if len(teachers) > 1 else math.inf
        inside = is_number(wrong_scale) and 0 < wrong_scale < most
        check_number(
            "wrong_scale", wrong_scale, inside, f"a number above 0 and below {most:g} ({len(teachers)} teachers)"
        )


def check_values(labels: Tensor | None, lengths: Tensor | None, classes: int, ignore_index: int | None) -> None:
    """Labels and lengths inside their ranges, on CPU tensors; says which row and which value."""
    if torch.compiler.is_compiling():
        return
    if lengths is not None and lengths.device.type == "cpu":
        wrong = (lengths < 1) | (lengths > classes)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            refuse("lengths", f"{int(lengths[row])} in row {row}", f"1 ... {classes}")
    if labels is not None and labels.device.type == "cpu" and ignore_index is not None:
        end = torch.full_like(labels, classes) if lengths is None else lengths
        wrong = ((labels < 0) | (labels >= end)) & (labels != ignore_index)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            refuse(
                "labels",
                f"{int(labels[row])} in row {row}",
                f"0 ... {int(end[row]) - 1}, or ignore_index {ignore_index}",
            )


def check_rows(
    labels: Tensor | None,
    lengths: Tensor | None,
    shape: tuple[int, ...],
    device: torch.device,
    ignore_index: int | None,
) -> None:
    rows, classes = shape
    if labels is not None:
        check_like("labels", labels, (rows,), device, floating=False)
    if lengths is not None:
        check_like("lengths", lengths, (rows,), device, floating=False)
    check_values(labels, lengths, classes, ignore_index)


def check_row_weight(row_weight: Tensor | None, rows: int, device: torch.device) -> None:
    if row_weight is not None:
        check_like("row_weight", row_weight, (rows,), device, floating=True)


def check_loss_settings(
    temperature: float, weight: float, kl_scale: str | float, reduction: str, teachers: bool, labels: bool
) -> None:
    check_number("temperature", temperature, is_number(temperature) and temperature > 0, "a Python number above 0")
    check_number("weight", weight, is_number(weight) and 0 <= weight <= 1, "a Python number from 0 to 1")
    if kl_scale != "t2":
        check_number("kl_scale", kl_scale, is_number(kl_scale) and kl_scale >= 0, '"t2" or a number of at least 0')  # type: ignore[operator]
    if reduction not in REDUCTIONS:
        refuse("reduction", describe(reduction), ", ".join(REDUCTIONS))
    if weight > 0 and not teachers:
        refuse("weight", f"{weight} without a teacher", "0, or give a teacher")
    if weight < 1 and not labels:
        refuse("labels", f"None with weight {weight}", "labels, or weight 1 (no hard loss)")


def choose(impl: str, tensors: list[Tensor]) -> str:
    """ "triton" or "torch": `impl`, or for "auto" Triton on CUDA tensors and PyTorch elsewhere and for float64."""
    if impl not in IMPLEMENTATIONS:
        refuse("impl", describe(impl), ", ".join(IMPLEMENTATIONS))
    if impl == "torch":
        return impl
    double = torch.float64 in [tensor.dtype for tensor in tensors]
    cuda = tensors[0].is_cuda
    if impl == "auto":
        return "triton" if cuda and not double and TRITON else "torch"
    if not TRITON:
        refuse("impl", "'triton', which is not installed", "auto, torch")
    if not (cuda or INTERPRETING):
        refuse(
            "impl",
            f"'triton' for tensors on {tensors[0].device.type}",
            "auto or torch, or set TRITON_INTERPRET=1 before Python starts",
        )
    if double:
        refuse("impl", "'triton' with float64 tensors", "auto or torch; the kernels compute in float32")
    return "triton"
