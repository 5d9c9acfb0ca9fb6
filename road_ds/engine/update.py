"""An engine's step, whatever its stage and precision."""

from typing import Any

import torch

from road_ds.common.errors import RoadError


def read_at_once(engine: Any, micro_batches: int) -> None:
    """Tells an engine before a backward pass how many micro-batches it is of: a step ends with the last of them."""
    engine.micro_steps += micro_batches - 1


def step_engine(engine: Any) -> tuple[bool, Any]:
    """Steps the engine; whether the update was applied, and the gradient's norm before clipping (None inside a step).

    DeepSpeed skips updates whose gradient is not finite, except without ZeRO in fp32, where the weights would silently
    become NaN: there the gradients are clipped here, or dropped before they reach the optimizer.
    """
    plain = engine.zero_optimization_stage() == 0 and not engine.fp16_enabled() and not engine.bfloat16_enabled()
    if not (plain and engine.is_gradient_accumulation_boundary()):
        try:
            engine.step()
        except Exception as error:
            if "loss scale" not in str(error):
                raise
            raise RoadError(
                "fp16 overflowed at the smallest loss scale: the training diverged; lower the learning rate, or use "
                "road.precision bf16 or fp32"
            ) from None
        return engine.was_step_applied(), engine.get_global_grad_norm()
    trained = [p for p in engine.module.parameters() if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:  # one process reduces nothing; with more DeepSpeed fills these in, and weights decay
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
    finite, clipping = bool(norm.isfinite()), engine.gradient_clipping()
    if not finite:
        for parameter in engine.module.parameters():
            parameter.grad = None
    elif clipping:
        torch.nn.utils.clip_grads_with_norm_(trained, clipping, norm)
    engine.clip_fp32_gradients = lambda: None  # done, by the same rule; the engine's own fails where all are dropped
    engine.step()
    return finite, norm
