"""Losses: pure functions from logits and labels to one number, normalised once, over the rows of a micro-batch."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from road_ds.features import IGNORED


@dataclass(frozen=True)
class Loss:
    """total: what is differentiated, a scalar."""

    total: torch.Tensor


def supervised(logits: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor | None = None) -> Loss:
    """The mean loss over rows against the labels, in float32.

    logits: [rows, classes]; labels: [rows], whole numbers for cross-entropy, floats for squared error (classes = 1);
    lengths: [rows] how many leading classes are real, None where all are.
    """
    logits = logits.float()
    if labels.is_floating_point():
        return Loss(F.mse_loss(logits.squeeze(-1), labels.float()))
    if lengths is not None:
        outside = torch.arange(logits.shape[-1], device=logits.device) >= lengths[:, None]
        logits = logits.masked_fill(outside, float("-inf"))
    return Loss(F.cross_entropy(logits, labels, ignore_index=IGNORED))
