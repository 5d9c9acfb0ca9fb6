"""The distillation loss of a vocabulary-sized head, whose logits are never stored whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .arguments import REDUCTIONS, check_like, check_row_weight, check_rows, check_teacher_argument, describe, refuse
from .kd_loss import kd_loss
from .plan import pieces
from .reference import KDLoss, Teachers, as_teachers, reduce_rows

CHUNK_BYTES = 2**25  # of student logits in memory at a time, if chunk_rows is not given: the products stay large


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
) -> KDLoss:
    """The KDLoss of the student logits hidden @ head_weight.T + bias, computed a chunk of rows at a time.

    hidden [rows, width], head_weight [classes, width] and bias [classes] get gradients. The teacher is given by its logits,
    as for `kd_loss`, or by `teacher_hidden` [rows, teacher width] and `teacher_head_weight` [classes, teacher width], with
    or without `teacher_bias`; for several teachers each is a list. All other arguments are `kd_loss`'s.

    Of several chunks each lives only while its loss is computed, and is computed once more for its gradient: four products
    of the head instead of three. The other way, gradients in the forward pass, would round them in fp16 before the loss
    scale is known. Memory is that of one chunk: `chunk_rows` rows, by default as many as fill 32 MiB with student logits.
    """
    check_head("hidden", hidden, "head_weight", head_weight, "bias", bias)
    rows, classes = hidden.shape[0], head_weight.shape[0]
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_BYTES // (classes * hidden.element_size()))
    elif isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
        refuse("chunk_rows", describe(chunk_rows), "a whole number of at least 1")
    heads = teacher_heads(teacher, teacher_hidden, teacher_head_weight, teacher_bias, (rows, classes))
    check_teacher_argument(teacher)
    logits = as_teachers(teacher)
    for index, given in enumerate(logits):
        check_like(f"teacher[{index}]", given, (rows, classes), hidden.device, floating=True)
    # The rest is checked chunk by chunk by kd_loss; what is cut into chunks must have its full length before.
    check_rows(labels, lengths, (rows, classes), hidden.device, ignore_index)
    check_row_weight(row_weight, rows, hidden.device)
    if teacher_weights is not None:
        check_like("teacher_weights", teacher_weights, (len(logits) + len(heads), rows), hidden.device, floating=True)
    if reduction not in REDUCTIONS:
        refuse("reduction", describe(reduction), ", ".join(REDUCTIONS))

    def chunk_loss(hidden: Tensor, head_weight: Tensor, bias: Tensor | None, part: slice) -> KDLoss:
        with torch.no_grad():
            spoken = [F.linear(states[part], head, offset) for states, head, offset in heads]
        return kd_loss(
            F.linear(hidden[part], head_weight, bias),
            [*(given[part] for given in logits), *spoken] or None,
            cut(labels, part),
            temperature=temperature,
            weight=weight,
            kl_scale=kl_scale,
            lengths=cut(lengths, part),
            teacher_weights=None if teacher_weights is None else teacher_weights[:, part],
            wrong_scale=wrong_scale,
            row_weight=cut(row_weight, part),
            ignore_index=ignore_index,
            reduction="none",
            impl=impl,
        )

    parts = [slice(first * chunk_rows, (first + 1) * chunk_rows) for first in range(max(1, pieces(rows, chunk_rows)))]
    if len(parts) == 1:
        losses = [chunk_loss(hidden, head_weight, bias, parts[0])]  # nothing to save by computing it again
    else:
        # Nothing random happens in a chunk; to save the random state would make the host wait for the device.
        losses = [
            KDLoss(
                *checkpoint(chunk_loss, hidden, head_weight, bias, part, use_reentrant=False, preserve_rng_state=False)
            )
            for part in parts
        ]
    total, hard, soft = (torch.cat(column) for column in zip(*losses, strict=True))
    row_weights = torch.ones_like(total) if row_weight is None else row_weight.to(total.dtype)
    if labels is not None:
        row_weights = row_weights.masked_fill(labels == ignore_index, 0.0)
    return KDLoss(reduce_rows(total, row_weights, reduction), hard, soft)


def cut(rows: Tensor | None, part: slice) -> Tensor | None:
    return None if rows is None else rows[part]


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
