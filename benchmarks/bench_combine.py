"""Weighted KD's combination of teachers written out (ROaD, Algorithm 2): eager, torch.compile, ours.

    python benchmarks/bench_combine.py [--quick]

The floor is the logits of all teachers read once and the combination written once: N C (M b_teacher + b_out) bytes. On CPU
eager and the reference are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import (
    Limits,
    copies,
    device_time,
    folder,
    host_time,
    launches_and_syncs,
    limits,
    peak_memory,
    report,
    save,
)
from road_kernels import combine_teachers
from torch import Tensor

WRONG_SCALE = 0.75
COLUMNS = [
    "provider", "rows", "classes", "teachers", "dtype", "device us", "host us", "host p20", "host p80", "peak MB", "GB/s",
    "floor us", "x floor", "launches", "syncs",
]  # fmt: skip


def eager(teacher: Tensor, labels: Tensor) -> Tensor:
    """Algorithm 2 as one writes it with whole tensors."""
    count = teacher.shape[0]
    correct = teacher.argmax(2) == labels
    right = correct.sum(0)
    lifted = (count - (count - right) * WRONG_SCALE) / right.clamp(min=1)
    weights = torch.where(correct, lifted, WRONG_SCALE)
    weights = torch.where(right == 0, 1.0, weights)
    return ((teacher * weights[:, :, None]).sum(0) / count).to(teacher.dtype)


def ours(teacher: Tensor, labels: Tensor) -> Tensor:
    return combine_teachers(teacher, labels, wrong_scale=WRONG_SCALE)


def providers(device: torch.device) -> Iterator[tuple[str, Callable[[Tensor, Tensor], Tensor]]]:
    yield "eager", eager
    if device.type == "cuda":
        yield "torch.compile", torch.compile(eager, dynamic=False)
    yield "ours", ours


def shapes(device: torch.device, quick: bool) -> Iterator[tuple[int, int, int]]:
    """(rows, classes, teachers)"""
    if device.type != "cuda":
        if quick:
            yield from [(8, 3, 3), (4, 40, 2)]
            return
        yield from [(128, 3, 3), (64, 384, 3), (64, 4096, 3), (32, 30522, 3)]
        return
    sizes = [(128, 3), (64, 384), (8192, 512), (4096, 4096), (2048, 30522), (2048, 30528), (512, 128256)]
    for rows, classes in sizes:
        yield from ((rows, classes, teachers) for teachers in ((3,) if quick else (1, 3, 8)))


def measured(
    rows: int, classes: int, teachers: int, dtype: torch.dtype, device: torch.device, machine: Limits, repeats: int
) -> list[dict[str, Any]]:
    moved = rows * classes * torch.empty(0, dtype=dtype).element_size() * (teachers + 1)
    floor = 1e6 * moved / machine.copy_rate
    problems = []
    for seed in range(copies(moved, device)):
        generator = torch.Generator(device).manual_seed(seed)
        logits = [
            torch.randn(rows, classes, device=device, generator=generator).to(dtype).mul_(3) for _ in range(teachers)
        ]
        labels = torch.randint(0, classes, (rows,), device=device, generator=generator)
        problems.append((torch.stack(logits), labels))
    found = []
    for name, combine in providers(device):
        steps = [lambda problem=problem, combine=combine: combine(*problem) for problem in problems]
        host = host_time(steps, repeats, device)
        taken = device_time(steps, repeats, device)
        peak = peak_memory(steps[0], device)
        launches, syncs = launches_and_syncs(steps[0], device)
        found.append(
            {
                "provider": name,
                "rows": rows,
                "classes": classes,
                "teachers": teachers,
                "dtype": str(dtype).removeprefix("torch."),
                "device us": taken,
                "host us": host.p50,
                "host p20": host.p20,
                "host p80": host.p80,
                "peak MB": None if peak is None else peak / 1e6,
                "GB/s": moved / (taken or host.p50) / 1e3,
                "floor us": floor,
                "x floor": (taken or host.p50) / floor,
                "launches": launches,
                "syncs": syncs,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--output", type=Path, help="folder of the JSON; default: benchmarks/results/<device>")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    repeats = arguments.repeats or (20 if arguments.quick or device.type != "cuda" else 50)
    machine = limits(device)
    path = (arguments.output or folder(device)) / "bench_combine.json"
    rows: list[dict[str, Any]] = []
    for rows_, classes, teachers in shapes(device, arguments.quick):
        rows += measured(rows_, classes, teachers, dtype, device, machine, repeats)
        save(path, rows, device, machine)
    report(path, rows, COLUMNS, device, machine)


if __name__ == "__main__":
    main()
