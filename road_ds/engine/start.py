"""A model under DeepSpeed's engine: parameter groups, schedule, optimizer."""

from typing import Any

import torch

from road_ds.config.fit import fit_buckets
from road_ds.config.road import RateSettings
from road_ds.engine import optim, speed
from road_ds.models.multi_task import MultiTaskModel, parameter_count


def start(
    model: MultiTaskModel, ds: dict[str, Any], rates: RateSettings, *, device: str, apex: str, steps: int, seed: int
) -> Any:
    """The engine of a run of so many steps. apex: whether NVIDIA Apex's Adam is used; seed: of this process' dropout."""
    import deepspeed

    settings = ds["optimizer"]["params"]
    groups = optim.parameter_groups(
        model, lr=settings["lr"], weight_decay=settings.get("weight_decay", 0.0), layer_lr_decay=rates.layer_lr_decay
    )
    torch.manual_seed(seed)
    client = speed.optimizer(apex, ds, device, groups)
    if client is not None:
        ds = {key: value for key, value in ds.items() if key != "optimizer"}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=client,
        model_parameters=groups,
        config=fit_buckets(ds, parameter_count(model)),
        lr_scheduler=optim.scheduler(steps, rates.warmup, rates.schedule),
    )
    speed.reduce_between_ranks_only(engine)
    return engine
