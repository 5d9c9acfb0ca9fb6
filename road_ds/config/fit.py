"""What depends on the number of processes or the device, or is left out: filled into DeepSpeed's part."""

import json
import math
from typing import Any

from road_ds.common.errors import RoadError

MICRO = "train_micro_batch_size_per_gpu"
AUTO = "auto"  # its value where the rows of a micro-batch are chosen by what fits
OFFLOADING = frozenset(
    {"offload_optimizer", "offload_param", "zenflow"}
)  # keys of zero_optimization: what is not on the device


def fit_batch(ds: dict[str, Any], passes: int, world_size: int) -> dict[str, Any]:
    """The three batch sizes DeepSpeed wants, so that each pass's rows divide into whole micro-batches over the ranks.

    A step's `train_batch_size` rows are `passes` draws; micro-batch and world size only decide in how many pieces they
    are computed. "auto" stays, without the accumulation that follows from it. RoadError with the numbers and the sizes
    that would fit.
    """
    total, micro = ds["train_batch_size"], ds.get(MICRO, AUTO)
    if total % passes:
        fit = sorted({max(total - total % passes, passes), total - total % passes + passes})
        raise RoadError(
            f"train_batch_size {total} does not divide into road.passes {passes} equal draws: "
            f"take {' or '.join(map(str, fit))} rows, or passes that divide {total}"
        )
    fitting = micro_sizes(total, passes, world_size)
    if micro == AUTO and not fitting:
        raise RoadError(
            f"train_batch_size {total} / passes {passes}: {world_size} processes cannot share the {total // passes} rows of a "
            f"pass evenly: make train_batch_size a multiple of {passes * world_size}"
        )
    if micro not in (*fitting, AUTO):
        sizes = ", ".join(map(str, fitting)) or f"none: train_batch_size must be a multiple of {passes * world_size}"
        raise RoadError(
            f"{MICRO} {micro} x {world_size} processes does not divide the {total // passes} rows of a pass "
            f"(train_batch_size {total} / passes {passes}); micro-batch sizes that fit {world_size} processes: {sizes}"
        )
    given = ds.get("gradient_accumulation_steps")
    if micro == AUTO:
        if given is not None:
            raise RoadError(
                f'gradient_accumulation_steps {given}: follows from {MICRO}, which is "auto": leave it out, or give both'
            )
        return {"train_batch_size": total, MICRO: AUTO}
    accumulation = total // (micro * world_size)
    if given not in (None, accumulation):
        raise RoadError(
            f"gradient_accumulation_steps {given} does not fit: train_batch_size {total} / (micro-batch {micro} x "
            f"{world_size} processes) = {accumulation}; leave the key out, it follows from the others"
        )
    return {"train_batch_size": total, MICRO: micro, "gradient_accumulation_steps": accumulation}


def micro_sizes(total: int, passes: int, world_size: int) -> list[int]:
    """The rows that a micro-batch may have, from 1; none where a pass does not divide over the ranks."""
    rows = total // passes
    return _divisors(rows // world_size) if rows % world_size == 0 else []


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def fit_precision(ds: dict[str, Any], precision: str, device: str, capability: tuple[int, int] | None) -> str:
    """The precision of the run, "bf16", "fp16" or "fp32", and DeepSpeed's block for it written into `ds`.

    `capability` is the GPU's compute capability, None on CPU. `auto` is bf16 from 8.0, fp16 below, fp32 on CPU.
    """
    given = [kind for kind in ("fp16", "bf16") if (ds.get(kind) or {}).get("enabled")]
    if len(given) == 2:
        raise RoadError("fp16 and bf16 are both enabled: keep one")
    if given and precision != "auto":
        raise RoadError(
            f"road.precision is {precision!r} and the {given[0]} block is enabled too: give one of the two "
            f"(the block when you want to set its loss scale, road.precision otherwise)"
        )
    if given:
        precision = given[0]
    elif precision == "auto":
        precision = "fp32" if capability is None else "bf16" if capability >= (8, 0) else "fp16"
    if precision == "bf16" and capability is not None and capability < (8, 0):
        raise RoadError(
            f"bf16 is not supported by this GPU (compute capability {capability[0]}.{capability[1]}, "
            'needs 8.0): use road.precision "fp16"'
        )
    if precision == "fp16" and device == "cpu":
        raise RoadError('fp16 does not run on CPU: use road.precision "fp32" or "bf16" (or "auto")')
    if precision != "fp32":
        ds[precision] = {**(ds.get(precision) or {}), "enabled": True}
    return precision


def fit_optimizer(ds: dict[str, Any], device: str) -> list[str]:
    """What was filled into `ds` where the file is silent and DeepSpeed would choose by itself, one line each."""
    notes = []

    def fill(block: dict[str, Any], key: str, value: Any, shown: str, why: str = "") -> None:
        if key not in block:
            block[key] = value
            notes.append(f"{shown}{key} = {json.dumps(value)}{why and f' ({why})'}")

    fill(ds, "optimizer", {"type": "AdamW", "params": {"lr": 1e-4}}, "")
    fill(ds, "gradient_clipping", 1.0, "", "0 is off")
    half = any((ds.get(kind) or {}).get("enabled") for kind in ("fp16", "bf16"))
    fill(ds, "zero_optimization", {"stage": int(half)}, "")
    fill(ds["zero_optimization"], "stage", int(half), "zero_optimization.")
    if half and ds["zero_optimization"]["stage"] == 0:
        raise RoadError(
            "zero_optimization.stage: got 0 in half precision, where DeepSpeed steps Adam once before the training and "
            "reports scaled gradient norms: use stage 1, which costs nothing on one process"
        )
    ds.setdefault("steps_per_print", 10**9)  # the run prints its own lines
    ds.setdefault("timers", {"throughput": {"enabled": False}})  # it would wait for the device twice a micro-batch
    name, params = ds["optimizer"]["type"], ds["optimizer"].setdefault("params", {})
    adam = name.lower() in ("adam", "adamw")
    fill(params, "weight_decay", 0.01 if adam else 0.0, "optimizer.params.", "none on biases and norms")
    if adam and "offload_optimizer" not in ds["zero_optimization"]:
        # DeepSpeed's own Adam compiles a CUDA or CPU extension at the first start; torch's is as fast when fused.
        fill(params, "torch_adam", True, "optimizer.params.", f"{name} is torch's own: nothing is compiled")
        if params["torch_adam"] and "foreach" not in params:
            fill(params, "fused", True, "optimizer.params.")
    if not adam and ds["zero_optimization"]["stage"] > 0:
        fill(ds, "zero_allow_untested_optimizer", True, "", f"{name} under ZeRO")
    return notes


def fit_stage(ds: dict[str, Any], processes: int) -> dict[str, Any]:
    """`ds` for the engine: ZeRO 2 in place of ZeRO 3 for one process, which has nobody to share weights with.

    ZeRO 3 would fetch, release and reduce them module by module all the same. Where something is offloaded it stays.
    """
    zero = ds["zero_optimization"]
    if zero["stage"] < 3 or processes > 1 or OFFLOADING & set(zero):
        return ds
    return ds | {"zero_optimization": zero | {"stage": 2}}


def fit_buckets(ds: dict[str, Any], parameters: int) -> dict[str, Any]:
    """`ds` for the engine, with ZeRO's bucket of gradients bounded by the model's size where the file is silent.

    DeepSpeed would hold 5e8 elements, 1 GB in half precision, for any model.
    """
    zero = ds["zero_optimization"]
    if zero["stage"] == 0:
        return ds
    return ds | {"zero_optimization": {"reduce_bucket_size": min(500_000_000, parameters)} | zero}
