"""Whether the data sets of a step pull the encoder in one direction: the cosines between their gradients."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from road_ds.common.ranks import Ranks
from road_ds.data.batch import Batch


def gradient_cosines(
    engine: Any, batches: Sequence[Batch], passes: int, loss: Callable[[Batch], torch.Tensor], ranks: Ranks
) -> dict[str, float]:
    """`cosine/<data set>~<data set>` of the encoder's gradient, for each pair of a step's passes (the mean of equal pairs).

    batches: this rank's micro-batches of a step, pass by pass. The step is computed once more for this, and every pass's
    gradient held in float32 at once; weights, gradients and random states stay as they are. Not under ZeRO 3, whose
    weights are partitioned.
    """
    parameters = [p for p in engine.module.encoder.parameters() if p.requires_grad]
    scale = getattr(engine.optimizer, "loss_scale", 1.0)  # without it small gradients are lost in fp16
    names, gradients = [], []
    with torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else []):
        for part in np.array_split(np.arange(len(batches)), passes):
            total = torch.zeros(sum(p.numel() for p in parameters), device=ranks.device)
            for batch in (batches[i] for i in part):
                parts = torch.autograd.grad(loss(batch) * scale, parameters, allow_unused=True)
                flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, parts, strict=True)]
                total += torch.cat([g.flatten().float() for g in flat])
            names.append(batches[part[0]].dataset)
            gradients.append(ranks.sum(total))
    units = torch.stack([g / g.norm().clamp(min=1e-30) for g in gradients])
    cosines = (units @ units.T).cpu().numpy()
    found: dict[str, list[float]] = {}
    for i, j in combinations(range(len(names)), 2):
        found.setdefault("cosine/" + "~".join(sorted((names[i], names[j]))), []).append(float(cosines[i, j]))
    return {key: float(np.mean(values)) for key, values in found.items()}
