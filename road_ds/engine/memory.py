"""What a run takes of each GPU's memory: a model, not a measurement."""

from typing import Any

from road_ds.config.fit import fit_buckets


def memory(parameters: int, world_size: int, precision: str) -> list[float]:
    """Bytes per GPU for weights, gradients and Adam's states under ZeRO 0, 1, 2 and 3.

    Half precision: 2 + 2 bytes for weights and gradients, 12 for the float32 copy and Adam's two moments; float32:
    4 + 4 and 8 (ZeRO paper, section 3.1).
    """
    weights, gradients, states = (4, 4, 8) if precision == "fp32" else (2, 2, 12)
    return [
        parameters * (weights + gradients + states),
        parameters * (weights + gradients + states / world_size),
        parameters * (weights + (gradients + states) / world_size),
        parameters * (weights + gradients + states) / world_size,
    ]


def bucket(ds: dict[str, Any], stage: int, parameters: int, precision: str) -> int:
    """Bytes that ZeRO holds during the backward pass for gradients on their way to the other GPUs."""
    zero = {**ds.get("zero_optimization", {}), "stage": stage}
    if stage == 0 or not zero.get("contiguous_gradients", True):
        return 0
    elements = fit_buckets({"zero_optimization": zero}, parameters)["zero_optimization"]["reduce_bucket_size"]
    buffers = 2 if zero.get("overlap_comm") and stage < 3 else 1
    return int(elements) * buffers * (4 if precision == "fp32" else 2)


def held(parameters: int, ds: dict[str, Any], world_size: int, precision: str) -> float:
    """Bytes per GPU under the settings of `ds`, before a row is computed; from below where not Adam on the GPU updates."""
    zero, name = ds["zero_optimization"], ds["optimizer"]["type"].lower()
    stage = zero["stage"]
    size = memory(parameters, world_size, precision)[stage] + bucket(ds, stage, parameters, precision)
    if "adam" in name and "offload_optimizer" not in zero:
        return size
    return size - 8 * parameters / (world_size if stage else 1)


def activations(settings: Any, precision: str, checkpointing: bool = False) -> float:
    """Bytes per token that an encoder keeps for its backward pass, attention scores not kept (Korthikanti, 2022).

    settings: the encoder's; checkpointing: one tensor a layer and all of one layer are kept.
    """
    hidden, layers = settings.hidden_size, settings.num_hidden_layers
    each = 4 if precision == "fp32" else 2
    layer = (9 * hidden + 2 * getattr(settings, "intermediate_size", 4 * hidden)) * each
    return layer + layers * each * hidden if checkpointing else layers * layer


def readable(size: float) -> str:
    """A number of bytes in MiB, or in GiB from there on."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"
