"""A model under DeepSpeed's engine: layer-wise rates, the schedule, and without what a step does not need."""

from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from road_ds.config.fit import OFFLOADING, fit_buckets, fit_stage
from road_ds.config.road import RateSettings
from road_ds.engine import internals
from road_ds.engine.adamw import LayerwiseAdamW
from road_ds.engine.optim import parameter_groups, rate_shares, scheduler
from road_ds.models.multi_task import parameter_count

ADAMW = ("lr", "betas", "eps", "weight_decay")  # the settings of AdamW that decide on the update


def start(model: nn.Module, ds: dict[str, Any], rates: RateSettings, *, steps: int, seed: int, views: int = 1) -> Any:
    """The engine of a run of so many steps. seed: of this process' dropout; views: how often it reads a micro-batch in a step.

    ds: DeepSpeed's settings, as `fit_batch`, `fit_precision` and `fit_optimizer` have completed them.
    """
    import deepspeed

    settings = ds["optimizer"]["params"]
    rate = {"lr": settings["lr"], "weight_decay": settings.get("weight_decay", 0.0)}
    ds = fit_buckets(fit_stage(ds, dist.get_world_size()), parameter_count(model))
    ds = {**ds, **{key: ds[key] * views for key in ("train_batch_size", "gradient_accumulation_steps") if key in ds}}
    torch.manual_seed(seed)
    client = None
    if takes_pieces(ds):
        groups = parameter_groups(model, **rate, layer_lr_decay=1.0)
        client = LayerwiseAdamW(groups, **{key: settings[key] for key in ADAMW if key in settings})
        internals.support(LayerwiseAdamW)
        ds = {key: value for key, value in ds.items() if key != "optimizer"}
    else:
        groups = parameter_groups(model, **rate, layer_lr_decay=rates.layer_lr_decay)
    shares = rate_shares(model, rates.layer_lr_decay)
    internals.leave_muon_as_it_stands()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=client,
        model_parameters=groups,
        config=ds,
        lr_scheduler=scheduler(steps, rates.warmup, rates.schedule),
    )
    internals.lighten(engine)
    if client is not None:
        client.pieces = internals.pieces_of(engine, shares)
    return engine


def follow_schedule(engine: Any) -> None:
    """Sets the rates to what the engine's own schedule says after the steps done: a checkpoint brings those of a shorter run's."""
    schedule = engine.lr_scheduler
    for group, base, rate in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * rate(schedule.last_epoch)


def takes_pieces(ds: dict[str, Any]) -> bool:
    """Whether `LayerwiseAdamW` can stand for the optimizer that is asked for: torch's fused AdamW, on the device.

    Any other has a group for each rate, which costs an update of its own, and more around it.
    """
    name, params = ds["optimizer"]["type"], ds["optimizer"]["params"]
    return (
        name.lower() == "adamw"
        and bool(params.get("torch_adam") and params.get("fused"))
        and set(params) <= {*ADAMW, "torch_adam", "fused"}
        and not OFFLOADING & set(ds["zero_optimization"])
        and "data_types" not in ds
    )
