"""Forward and backward of the distillation loss: eager, torch.compile, Liger, ours.

    python benchmarks/bench_kd_loss.py              # all shapes, on the GPU if there is one
    python benchmarks/bench_kd_loss.py --quick      # within 2 minutes on one GPU

The loss is (1 - weight) CE + weight T^2 KL from raw logits of M teachers (their mean), or, in the rows named "head", pure KL
from hidden states through a vocabulary head, with gradients for both. The floor is what must move at least, at the
measured copy rate: the kernels read the logits twice (statistics forward, gradient backward), so that is
N C (2 b_student + 2 M b_teacher + b_gradient) + 92 N bytes. Of a head it is the three matrix products, measured ("products").
On CPU eager and the reference are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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
from road_kernels import kd_loss, linear_kd_loss
from torch import Tensor

TEMPERATURE, WEIGHT = 5.0, 0.9
COMPILED = 512  # classes from which torch.compile is worth its seconds here
COLUMNS = [
    "provider", "rows", "classes", "teachers", "dtype", "device us", "host us", "host p20", "host p80", "peak MB", "GB/s",
    "floor us", "x floor", "launches", "syncs", "error",
]  # fmt: skip
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(NamedTuple):
    rows: int
    classes: int
    teachers: int
    hidden: int = 0  # width of the head; 0: from logits


def eager(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """What one writes in PyTorch; float32 inside, as fp16 logits need."""
    log_student = F.log_softmax(student / TEMPERATURE, 1, dtype=torch.float32)
    target = F.softmax(teacher.mean(0) / TEMPERATURE, 1, dtype=torch.float32)
    soft = F.kl_div(log_student, target, reduction="batchmean")
    hard = F.cross_entropy(student.float(), labels)
    return (1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * soft


def liger(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Liger's cross-entropy and KL kernels in place of PyTorch's; softmax and mean of the teachers remain PyTorch's."""
    from liger_kernel.transformers.functional import liger_cross_entropy, liger_kl_div

    log_student = F.log_softmax(student / TEMPERATURE, 1, dtype=torch.float32)
    target = F.softmax(teacher.mean(0) / TEMPERATURE, 1, dtype=torch.float32)
    soft = liger_kl_div(log_student, target, reduction="batchmean")
    # It overwrites the logits with their gradient, hence the copy; float32, as for eager.
    hard = liger_cross_entropy(student.float(), labels)
    return (1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * soft


def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    return kd_loss(student, teacher, labels, temperature=TEMPERATURE, weight=WEIGHT).total


class Head:
    """Pure KL through a vocabulary head: the student's head weight stands in for the model's."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.randn(shape.classes, shape.hidden, device=device, dtype=dtype).mul_(0.05).requires_grad_()

    def eager(self, hidden: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_student = F.log_softmax(F.linear(hidden, self.weight) / TEMPERATURE, 1, dtype=torch.float32)
        target = F.softmax(teacher[0] / TEMPERATURE, 1, dtype=torch.float32)
        return F.kl_div(log_student, target, reduction="batchmean") * TEMPERATURE**2

    def liger(self, hidden: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_kl_div

        target = F.softmax(teacher[0] / TEMPERATURE, 1, dtype=torch.float32)
        return liger_fused_linear_kl_div(hidden, self.weight, target, temperature=TEMPERATURE) * TEMPERATURE**2

    def ours(self, hidden: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return linear_kd_loss(hidden, self.weight, labels, teacher=teacher, temperature=TEMPERATURE, weight=1.0).total


class Products:
    """The three matrix products of a head alone, the least that any implementation does: logits and both gradients.

    padded: in rows that start at 16-byte boundaries, which cuBLAS multiplies faster.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device, padded: bool) -> None:
        self.weight = torch.randn(shape.classes, shape.hidden, device=device, dtype=dtype)
        width = -(-shape.classes // 8) * 8 if padded else shape.classes
        self.logits = torch.empty(shape.rows, width, device=device, dtype=dtype)[:, : shape.classes]

    def __call__(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            torch.mm(hidden, self.weight.t(), out=self.logits)
            return self.logits @ self.weight, self.logits.t() @ hidden


def providers(shape: Shape, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Loss, list[Tensor]]]:
    """Name, loss, and the parameters that get a gradient beside the student."""
    head = Head(shape, dtype, device) if shape.hidden else None
    parameters = [head.weight] if head else []
    yield "eager", head.eager if head else eager, parameters
    yield "ours", head.ours if head else ours, parameters
    if device.type == "cuda" and shape.teachers == 1:
        yield "liger", head.liger if head else liger, parameters
    if device.type == "cuda" and shape.classes >= COMPILED:
        yield "torch.compile", torch.compile(head.eager if head else eager, dynamic=False), parameters


def shapes(device: torch.device, quick: bool) -> Iterator[Shape]:
    """Rows of a normal batch for small classes and spans, enough rows to fill a GPU for the rest."""
    if device.type != "cuda":
        if quick:
            yield from (Shape(8, 3, 3), Shape(4, 40, 1), Shape(8, 64, 1, hidden=16))
            return
        for rows, classes in [(128, 3), (64, 384), (64, 4096), (32, 30522)]:
            yield from (Shape(rows, classes, teachers) for teachers in (1, 3))
        yield Shape(64, 30522, 1, hidden=256)
        return
    if quick:
        yield from (Shape(128, 3, 3), Shape(64, 384, 3), Shape(8192, 512, 1), Shape(8192, 512, 3), Shape(4096, 4096, 1))
        yield from (Shape(2048, 30522, 1), Shape(2048, 30528, 1), Shape(2048, 30528, 3), Shape(512, 128256, 1))
        yield Shape(2048, 30522, 1, hidden=768)
        return
    for teachers in (1, 3, 8):
        for rows, classes in [
            (128, 2),
            (128, 3),
            (128, 5),
            (64, 384),
            (8192, 384),
            (64, 512),
            (8192, 512),
            (4096, 4096),
        ]:
            yield Shape(rows, classes, teachers)
        for rows, classes in [(2048, 30522), (2048, 30528), (512, 128256)]:
            yield Shape(rows, classes, teachers)
    yield Shape(2048, 30522, 1, hidden=768)
    yield Shape(2048, 128256, 1, hidden=2048)


def inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    width = shape.hidden or shape.classes

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, device=device, dtype=torch.float32, generator=generator).to(dtype)

    student = normal(shape.rows, width).requires_grad_()
    teacher = torch.stack([normal(shape.rows, shape.classes) * 3 for _ in range(shape.teachers)])
    labels = torch.randint(0, shape.classes, (shape.rows,), device=device, generator=generator)
    return student, teacher, labels


def moved_bytes(shape: Shape, itemsize: int) -> int:
    """What the two passes over the logits read and write."""
    return shape.rows * shape.classes * itemsize * (2 + 2 * shape.teachers + 1) + 92 * shape.rows


def measured(
    shape: Shape, dtype: torch.dtype, device: torch.device, machine: Limits, repeats: int
) -> list[dict[str, Any]]:
    """One row for each provider. A provider that fails gets a row that says how."""
    moved = moved_bytes(shape, torch.empty(0, dtype=dtype).element_size())
    floor = 1e6 * moved / machine.copy_rate
    problems = [inputs(shape, dtype, device, seed) for seed in range(copies(moved, device))]
    upstream = torch.ones((), device=device)  # autograd would launch a fill for it
    rows: list[dict[str, Any]] = []
    steps: dict[str, list[Callable[[], Any]]] = {}
    if shape.hidden:
        for name, padded in (("products", False), ("products, padded", True)):
            products = Products(shape, dtype, device, padded)
            steps[name] = [partial(products, student) for student, *_ in problems]
    for name, loss, parameters in providers(shape, dtype, device):
        steps[name] = [partial(both, loss, problem, parameters, upstream) for problem in problems]
    for name, turns in steps.items():
        label = f"head {shape.hidden} {name}" if shape.hidden else name
        row: dict[str, Any] = {"provider": label, **shape._asdict(), "dtype": str(dtype).removeprefix("torch.")}
        rows.append(row)
        try:
            host = host_time(turns, repeats, device)
            taken = device_time(turns, repeats, device)
            peak = peak_memory(turns[0], device)
            row["launches"], row["syncs"] = launches_and_syncs(turns[0], device)
        except Exception as error:  # one provider's failure must not cost the others' numbers
            row["error"] = f"{type(error).__name__}: {str(error)[:80]}"
            continue
        row.update({"device us": taken, "host p20": host.p20, "host us": host.p50, "host p80": host.p80})
        row["peak MB"] = None if peak is None else peak / 1e6
        if shape.hidden:
            floor = rows[0].get("device us") or rows[0].get("host us") or floor
        else:
            row["GB/s"] = moved / (taken or host.p50) / 1e3
        row.update({"floor us": floor, "x floor": (taken or host.p50) / floor})
    return rows


def both(loss: Loss, problem: tuple[Tensor, Tensor, Tensor], parameters: list[Tensor], upstream: Tensor) -> Any:
    """A forward and a backward pass."""
    total = loss(*problem)
    return torch.autograd.grad(total, [problem[0], *parameters], upstream.to(total.dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--output", type=Path, help="folder of the JSON; default: benchmarks/results/<device>")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("float16" if device.type == "cuda" else "float32"))
    repeats = arguments.repeats or (20 if arguments.quick or device.type != "cuda" else 50)
    machine = limits(device)
    path = (arguments.output or folder(device)) / "bench_kd_loss.json"
    rows: list[dict[str, Any]] = []
    for shape in shapes(device, arguments.quick):
        rows += measured(shape, dtype, device, machine, repeats)
        save(path, rows, device, machine)
    report(path, rows, COLUMNS, device, machine)


if __name__ == "__main__":
    main()
