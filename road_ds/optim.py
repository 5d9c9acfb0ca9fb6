"""Parameter groups with layer-wise learning rates, and the schedule over them."""

import math
import re
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LAYER = re.compile(r"\.(?:layer|layers|albert_layer_groups)\.(\d+)\.")


def depth(name: str, layers: int) -> int:
    """How far a parameter lies below the heads: 0 for a head, 1 for the top layer, layers + 1 for the embeddings."""
    if not name.startswith("encoder."):
        return 0
    layer = LAYER.search(name)
    if layer:
        return layers - int(layer.group(1))
    return layers + 1 if "embedding" in name else 1  # poolers and final norms go with the top layer


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_lr_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups, one per depth and decay: rate lr x layer_lr_decay ** depth, no decay on biases and norms.

    Head x1, top layer x d, next x d^2, ..., embeddings x d^(layers + 1) (ROaD Table 8's layer-wise multiplier).
    """
    names = [name for name, _ in model.named_parameters()]
    layers = 1 + max((int(match.group(1)) for name in names if (match := LAYER.search(name))), default=-1)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        below = depth(name, layers)
        decays = parameter.ndim > 1
        key = (below if layer_lr_decay < 1 else 0, decays)
        rate = lr * layer_lr_decay ** key[0]
        group = groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def warmup_steps(warmup: float, steps: int) -> int:
    """The number of warmup steps: `warmup` is a share of all steps up to 1, a number of steps above."""
    return round(warmup * steps) if warmup <= 1 else int(warmup)


def rate_at(step: int, steps: int, warmup: int, schedule: str) -> float:
    """The factor on every learning rate in a step (from 0): linear warmup from 1 / warmup, then the schedule to 0."""
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, steps - warmup))
    return {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}[schedule]


def scheduler(steps: int, warmup: float, schedule: str) -> Callable[[Optimizer], LambdaLR]:
    """What makes the schedule over an optimizer: DeepSpeed calls it with the one that it has built."""
    first = warmup_steps(warmup, steps)
    return lambda optimizer: LambdaLR(optimizer, lambda step: rate_at(step, steps, first, schedule))
