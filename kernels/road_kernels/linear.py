"""The distillation loss of a vocabulary-sized head, whose logits are never stored whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import plan, reference
from .arguments import (
    check_like,
    check_loss_settings,
    check_row_weight,
    check_rows,
    check_teacher_argument,
    check_weighting,
    choose,
    describe,
    refuse,
)
from .kd_loss import kd_loss, kernels
from .problem import Problem
from .reference import (
    KDLoss,
    Teachers,
    accumulation_dtype,
    as_teachers,
    divisor,
    kl_factor,
    reduce_rows,
    weights_of_rows,
)

# Student logits in memory at a time, if chunk_rows is not given: on a device the products stay large, a CPU has them in its cache.
CHUNK_BYTES, CPU_CHUNK_BYTES = 2**28, 2**26


def linear_kd_loss(
    hidden: Tensor,
    head_weight: Tensor,
    labels: Tensor | None,
    *,
    temperature: float,
    weight: float,
    bias: Tensor | None = None,
    teacher: Teachers = None,
    teacher_hidden: Tensor | Sequence[Tensor] | None = None,
    teacher_head_weight: Tensor | Sequence[Tensor] | None = None,
    teacher_bias: Tensor | Sequence[Tensor] | None = None,
    kl_scale: str | float = "t2",
    lengths: Tensor | None = None,
    teacher_weights: Tensor | None = None,
    wrong_scale: float | None = None,
    row_weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    impl: str = "auto",
    chunk_rows: int | None = None,
    visit: Callable[[slice, Tensor], None] | None = None,
) -> KDLoss:
    """The KDLoss of the student logits hidden @ head_weight.T + bias, computed a chunk of rows at a time.

    hidden [rows, width], head_weight [classes, width] and bias [classes] get gradients. The teacher is given by its logits,
    as for `kd_loss`, or by `teacher_hidden` [rows, teacher width] and `teacher_head_weight` [classes, teacher width], with
    or without `teacher_bias`; for several teachers each is a list. All other arguments are `kd_loss`'s.

    visit is called in the forward pass with the rows of each chunk and their logits [rows, classes], without a gradient: what else
    is asked of them (a sample, the likeliest class) costs no second product. It must not change them.

    Memory is that of one chunk: `chunk_rows` rows, by default as many as fill 256 MiB (on a CPU 64) with student logits, whose rows
    are padded to 16 bytes and which a kernel's gradient overwrites. A lone chunk is kept for that. Of several each lives only while its
    loss is computed; in bf16 and float32 its gradient is taken at once, before grad_output is known. fp16 would lose what
    the loss scale has not yet lifted, and reduction="none" has a grad_output for each row: there a chunk is computed once more,
    four products of the head instead of three. A graph under torch.compile holds the logits whole.
    """
    check_head("hidden", hidden, "head_weight", head_weight, "bias", bias)
    rows, classes = hidden.shape[0], head_weight.shape[0]
    if chunk_rows is None:
        size = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else CHUNK_BYTES
        chunk_rows = max(1, size // (classes * hidden.element_size()))
    elif isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
        refuse("chunk_rows", describe(chunk_rows), "a whole number of at least 1")
    teachers = all_teachers(teacher, teacher_hidden, teacher_head_weight, teacher_bias, (rows, classes), hidden.device)
    check_loss_settings(temperature, weight, kl_scale, reduction, len(teachers.every()) > 0, labels is not None)
    check_rows(labels, lengths, (rows, classes), hidden.device, ignore_index)
    check_weighting(teachers.every(), labels, wrong_scale, teacher_weights, rows, hidden.device)
    check_row_weight(row_weight, rows, hidden.device)
    if torch.compiler.is_compiling():
        whole = F.linear(hidden, head_weight, bias)
        if visit is not None:
            visit(slice(0, rows), whole.detach())
        return kd_loss(
            whole, teachers.logits(slice(None)) or None, labels,
            temperature=temperature, weight=weight, kl_scale=kl_scale, lengths=lengths, teacher_weights=teacher_weights,
            wrong_scale=wrong_scale, row_weight=row_weight, ignore_index=ignore_index, reduction=reduction, impl=impl,
        )  # fmt: skip
    hidden, head_weight = as_product(hidden), as_product(head_weight)
    bias = None if bias is None else as_product(bias)
    problem = Problem.of(
        hidden, [], len(teachers.every()), labels, lengths, teacher_weights, row_weight, temperature, weight,
        kl_factor(kl_scale, temperature), wrong_scale, ignore_index, reduction,
    ).dense()  # fmt: skip
    work = Work(
        problem,
        teachers,
        chunk_rows,
        choose(impl, [hidden, *teachers.every()]) == "triton",
        torch.is_grad_enabled(),
        visit,
    )
    return KDLoss(*Chunked.apply(hidden, head_weight, bias, work))


class Heads(NamedTuple):
    """The teachers: logits, or hidden states with a head (and a bias or None)."""

    given: list[Tensor]
    heads: list[tuple[Tensor, Tensor, Tensor | None]]

    def every(self) -> list[Tensor]:
        return [*self.given, *(states for states, _, _ in self.heads)]

    def logits(self, rows: slice) -> list[Tensor]:
        with torch.no_grad():
            return [
                *(given[rows] for given in self.given),
                *(product(states[rows], weight, bias) for states, weight, bias in self.heads),
            ]


class Work(NamedTuple):
    """What a head's loss is computed of, beside the tensors that get gradients."""

    problem: Problem
    teachers: Heads
    chunk_rows: int
    kernels: bool
    training: bool
    visit: Callable[[slice, Tensor], None] | None

    def parts(self, rows: int) -> list[slice]:
        number = max(1, plan.pieces(rows, self.chunk_rows))
        return [slice(first * self.chunk_rows, (first + 1) * self.chunk_rows) for first in range(number)]

    @property
    def accumulation(self) -> torch.dtype:
        return accumulation_dtype(self.problem.student, *self.teachers.every())

    def first(self, rows: slice, logits: Tensor, reduction: str) -> Problem:
        """A chunk of the forward pass."""
        if self.visit is not None:
            self.visit(rows, logits)
        return self.chunk(rows, logits, reduction)

    def chunk(self, rows: slice, logits: Tensor, reduction: str) -> Problem:
        return self.problem.part(rows, logits, self.teachers.logits(rows), reduction)

    def loss(self, chunk: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        if not self.kernels:
            return *reference.kd_loss(chunk), None
        forward, _ = kernels()
        return forward(chunk)

    def learned(self, chunk: Problem, upstream: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """The losses of a chunk, and the gradient of its logits."""
        if not self.kernels:
            return by_definition(chunk, upstream)
        *losses, saved = self.loss(chunk)
        return losses, gradient(chunk, saved, upstream)


class Chunked(torch.autograd.Function):
    """total, hard and soft of a head's logits; gradients for hidden states, weight and bias."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, head_weight: Tensor, bias: Tensor | None, work: Work
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, head_weight, bias)
        ctx.work, ctx.kept, ctx.early, ctx.divisor = work, None, None, None
        wanted = [work.training and need for need in ctx.needs_input_grad[:3]]
        parts = work.parts(hidden.shape[0])
        early = any(wanted) and work.problem.reduction != "none" and hidden.dtype != torch.float16
        if len(parts) == 1 and (work.kernels or not early):
            chunk = work.first(parts[0], product(hidden, head_weight, bias), work.problem.reduction)
            total, hard, soft, saved = work.loss(chunk)
            ctx.kept = (chunk, saved) if any(wanted) else None
        else:
            weights = weights_of_rows(hidden.new_empty(hidden.shape[0], dtype=work.accumulation), work.problem)
            ctx.divisor = divisor(weights, work.problem.reduction)
            sums = Gradients(hidden, head_weight, bias, wanted)
            found = []
            for part in parts:
                chunk = work.first(part, product(hidden[part], head_weight, bias), "none")
                if early:
                    losses, slope = work.learned(chunk, (1 / ctx.divisor).expand(len(chunk.student)))
                    sums.add(part, slope)
                else:
                    losses = work.loss(chunk)[:3]
                found.append(losses)
            total, hard, soft = (torch.cat(rows) for rows in zip(*found, strict=True))
            total = reduce_rows(total, weights, work.problem.reduction)
            ctx.early = sums.found if early else None
        ctx.mark_non_differentiable(hard, soft)
        return total, hard, soft

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *unused: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return None, None, None, None
        if ctx.early is not None:
            return *(None if found is None else (found * grad_total).to(found.dtype) for found in ctx.early), None
        hidden, head_weight, bias = ctx.saved_tensors
        work: Work = ctx.work
        sums = Gradients(hidden, head_weight, bias, ctx.needs_input_grad[:3])
        kept: tuple[Problem, Tensor | None] | None = ctx.kept
        ctx.kept = None  # the gradient overwrites its logits: a second time they are computed again
        parts = work.parts(hidden.shape[0])
        reduction = work.problem.reduction if len(parts) == 1 else "none"
        upstream = grad_total if ctx.divisor is None else (grad_total / ctx.divisor).expand(hidden.shape[0])
        for part in parts:
            if kept is None:
                chunk = work.chunk(part, product(hidden[part], head_weight, bias), reduction)
                kept = chunk, work.loss(chunk)[3]
            sums.add(part, gradient(*kept, upstream if len(parts) == 1 else upstream[part]))
            kept = None
        return *sums.found, None


class Gradients:
    """Sums over chunks: of hidden states, weight and bias, each None where it is not wanted."""

    def __init__(self, hidden: Tensor, head_weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> None:
        self._hidden, self._head_weight = hidden, head_weight
        self._wanted = wanted
        self.found: list[Tensor | None] = [torch.empty_like(hidden) if wanted[0] else None, None, None]

    def add(self, rows: slice, slope: Tensor) -> None:
        """Takes in the gradient [rows, classes] of a chunk's logits."""
        states, weights, offsets = self.found
        if states is not None:
            torch.mm(slope, self._head_weight, out=states[rows])
        if self._wanted[1]:
            part = self._hidden[rows]
            self.found[1] = slope.t() @ part if weights is None else weights.addmm_(slope.t(), part)
        if self._wanted[2]:
            self.found[2] = slope.sum(0) if offsets is None else offsets + slope.sum(0)


def gradient(chunk: Problem, saved: Tensor | None, upstream: Tensor) -> Tensor:
    """The gradient of a chunk's logits; from kernels, in the logits' own memory."""
    if saved is not None:
        _, backward = kernels()
        return backward(chunk, saved, upstream, gradient=chunk.student)
    return by_definition(chunk, upstream)[1]


def by_definition(chunk: Problem, upstream: Tensor) -> tuple[Sequence[Tensor], Tensor]:
    """The losses of a chunk, and the gradient of its logits, in one pass."""
    with torch.enable_grad():
        logits = chunk.student.detach().requires_grad_()
        total, hard, soft = reference.kd_loss(chunk._replace(student=logits))
    (slope,) = torch.autograd.grad(total, logits, upstream)
    return (total.detach(), hard, soft), slope


def product(states: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """states @ head.T + bias, [rows, classes], each row at a 16-byte boundary: loss and products need it to be fast."""
    if torch.compiler.is_compiling():  # it takes no `out` with strides of its own
        return F.linear(states, head, bias)
    states, head = as_product(states), as_product(head)
    logits = plan.padded(states.shape[0], head.shape[0], states.dtype, states.device)
    if bias is None:
        return torch.mm(states, head.t(), out=logits)
    return torch.addmm(as_product(bias), states, head.t(), out=logits)


def as_product(tensor: Tensor) -> Tensor:
    """In the dtype that a product is computed in under autocast."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def check_head(
    states_name: str, states: Tensor, head_name: str, head: Tensor, bias_name: str, bias: Tensor | None
) -> None:
    """A head fits its hidden states: widths, dtypes (but under autocast) and devices."""
    if not isinstance(states, Tensor) or states.dim() != 2 or not states.is_floating_point():
        refuse(states_name, describe(states), "floating-point hidden states [rows, width]")
    fits = isinstance(head, Tensor) and head.dim() == 2 and head.shape[1] == states.shape[1] and head.shape[0] > 0
    if not fits or head.device != states.device:
        refuse(head_name, describe(head), f"[classes, {states.shape[1]}] on {states.device}")
    if bias is not None:
        check_like(bias_name, bias, (head.shape[0],), states.device, floating=True)
    if head.dtype != states.dtype and not torch.is_autocast_enabled(states.device.type):
        refuse(head_name, head.dtype, f"{states.dtype}, the dtype of {states_name}, outside autocast")


def all_teachers(
    teacher: Teachers,
    states: Tensor | Sequence[Tensor] | None,
    weights: Tensor | Sequence[Tensor] | None,
    biases: Tensor | Sequence[Tensor] | None,
    shape: tuple[int, int],
    device: torch.device,
) -> Heads:
    """The teachers, checked: those given by logits, and those by hidden states and a head."""
    heads = teacher_heads(teacher, states, weights, biases, shape)
    check_teacher_argument(teacher)
    logits = as_teachers(teacher)
    for index, given in enumerate(logits):
        check_like(f"teacher[{index}]", given, shape, device, floating=True)
    return Heads([given.detach() for given in logits], heads)


def teacher_heads(
    teacher: Teachers,
    hidden: Tensor | Sequence[Tensor] | None,
    head_weight: Tensor | Sequence[Tensor] | None,
    bias: Tensor | Sequence[Tensor] | None,
    shape: tuple[int, int],
) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """(hidden, head weight, bias or None) of each teacher that is given by its hidden states."""
    if hidden is None:
        for name, value in (("teacher_head_weight", head_weight), ("teacher_bias", bias)):
            if value is not None:
                refuse(name, "a value without teacher_hidden", "only together with teacher_hidden")
        return []
    if teacher is not None:
        refuse("teacher_hidden", "both teacher and teacher_hidden", "one of the two")
    states, heads = as_list(hidden), as_list(head_weight)
    biases: list[Tensor | None] = [None] * len(states) if bias is None else as_list(bias)
    for name, given in (("teacher_head_weight", heads), ("teacher_bias", biases)):
        if len(given) != len(states):
            refuse(name, f"{len(given)} for {len(states)} teachers", "one for each teacher_hidden")
    found = []
    for state, head, offset in zip(states, heads, biases, strict=True):
        check_head("teacher_hidden", state, "teacher_head_weight", head, "teacher_bias", offset)
        if (state.shape[0], head.shape[0]) != shape:
            refuse(
                "teacher_hidden",
                f"{state.shape[0]} rows x {head.shape[0]} classes",
                f"{shape[0]} rows x {shape[1]} classes",
            )
        found.append((state.detach(), head.detach(), None if offset is None else offset.detach()))
    return found


def as_list(value: Tensor | Sequence[Tensor] | None) -> list:
    if value is None:
        return []
    return [value] if isinstance(value, Tensor) else list(value)
