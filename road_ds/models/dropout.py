"""Dropout on a CPU: sixteen random bits decide on an element, where torch draws a random double for each.

torch's own takes a sixth of a step of electra-small there (docs/performance.md); on a GPU it is fused with its random numbers, and stays.
"""

import torch
from torch import nn
from torch.nn import functional as F

from road_ds.models.exchange import exchange

LEVELS = 2**16  # what sixteen bits tell apart


def dropout(values: torch.Tensor, p: float) -> torch.Tensor:
    """The values, each zero with probability p and scaled by 1 / (1 - p) otherwise, on a CPU.

    p is rounded to a 65,536th. The bits are of torch's own generator: its seed and its state repeat the mask.
    """
    dropped = round(p * LEVELS)
    if dropped == LEVELS or torch.compiler.is_compiling():  # random_ would break the graph
        return F.dropout(values, p)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four elements each
    kept = words.view(torch.int16)[: values.numel()].view(values.shape)
    kept.ge_(dropped - LEVELS // 2)  # 0 or 1 in place: torch is slow with bools on a CPU
    scale = LEVELS / (LEVELS - dropped)
    if values.dtype == torch.float32:  # the same numbers, and the backward pass neither converts nor scales
        return values.mul(kept.to(torch.float32).mul_(scale))
    return values.mul(kept).mul_(scale)


class Dropout(nn.Dropout):
    """torch's module with the function above."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return dropout(input, self.p) if self.training and self.p > 0 else input


def replace_dropout(model: nn.Module) -> int:
    """How many of torch's dropout modules in a model now are those above."""
    return exchange(model, nn.Dropout, lambda module: Dropout(module.p).train(module.training))
