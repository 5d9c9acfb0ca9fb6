"""Parameter groups with layer-wise learning rates, and the schedule over them."""

import math
import re
from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

LAYER = re.compile(r"\.(\d+)\.")  # the first numbered module on the way to a parameter


def depths(names: Collection[str]) -> dict[str, int]:
    """How far each parameter lies below the heads, as in google-research/electra.

    0 for a head, 1 for a pooler or final norm, 2 for the top layer, ..., layers + 2 for the embeddings. ALBERT's layer
    groups count as layers, so the layer that all its depths share is the top one.
    """
    inside = [name for name in names if name.startswith("encoder.")]
    layers = 1 + max((int(match.group(1)) for name in inside if (match := LAYER.search(name))), default=-1)
    # What all layers share of the positions; DeBERTa has a norm for it beside the layers, where others have a final one.
    shared = any("rel_embeddings" in name for name in inside)

    def depth(name: str) -> int:
        if not name.startswith("encoder."):
            return 0
        if layer := LAYER.search(name):
            return layers + 1 - int(layer.group(1))
        if name.startswith("encoder.encoder.conv."):  # DeBERTa's, which runs behind layer 0
            return layers + 1
        if "embed" in name or "relative_attention_bias" in name or (shared and "encoder.encoder.LayerNorm." in name):
            return layers + 2
        return 1

    return {name: depth(name) for name in names}


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_lr_decay: float
) -> list[dict[str, Any]]:
    """Optimizer groups, one per depth and decay: rate lr x layer_lr_decay ** depth, no decay on biases and norms.

    Head x1, pooler or final norm x d, top layer x d^2, next x d^3, ..., embeddings x d^(layers + 2) (ROaD Table 8's
    layer-wise multiplier).
    """
    below = depths([name for name, _ in model.named_parameters()])
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1
        key = (below[name] if layer_lr_decay < 1 else 0, decays)
        rate = lr * layer_lr_decay ** key[0]
        group = groups.setdefault(key, {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def rate_shares(model: nn.Module, layer_lr_decay: float) -> dict[Tensor, float]:
    """Each trained parameter's share of the rate, layer_lr_decay ** depth: what tells the groups above apart besides decay."""
    below = depths([name for name, _ in model.named_parameters()])
    return {p: layer_lr_decay ** below[name] for name, p in model.named_parameters() if p.requires_grad}


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
