"""What a run leaves out of DeepSpeed's step, or does at once, and what it reads there for it: all that DeepSpeed does not document.

A function for each, and in tests/test_internals.py a test for each that fails where DeepSpeed has changed underneath.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import distributed as dist

from road_ds.engine.adamw import Piece, merged


def lighten(engine: Any) -> None:
    """Leaves out of an engine's step what changes no result. Engines with offloading, or wrapped otherwise, stay as they are."""
    stage, own = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        reduce_between_ranks_only(engine)
    elif is_plain(own):
        count_no_hooks(own)
        find_norms_at_once(own)
        if stage < 3:
            leave_weights_where_they_lie(own)
        if stage < 3 and engine.dp_world_size == 1:
            take_gradients_as_they_are(own)
        elif stage == 1 and not own.overlap_comm:
            reduce_without_hooks(own)


def is_plain(own: Any) -> bool:
    """Whether an engine's optimizer is DeepSpeed's for ZeRO 1 to 3, all of it on the device, gradients added up in one type."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if type(own) is DeepSpeedZeroOptimizer:
        return not own.cpu_offload and own.compute_grad_norm and own.gradient_accumulation_dtype == own.dtype
    return type(own) is DeepSpeedZeroOptimizer_Stage3 and not own.offload_optimizer


def support(optimizer: type) -> None:
    """Adds an optimizer to those that ZeRO is tested with: the tests here do it."""
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

    if optimizer not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(optimizer)


def leave_muon_as_it_stands() -> None:
    """Imports Muon, for which ZeRO looks, without having its functions compiled: torch's compiler is a second of every start.

    No run can ask for Muon.
    """
    from deepspeed.runtime import compiler

    whole, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
    try:
        with suppress(ImportError):  # a DeepSpeed that has it elsewhere imports it as it comes
            import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        compiler.compile = whole


def reduce_between_ranks_only(engine: Any) -> None:
    """Leaves out the reduction of the gradients where one process trains without ZeRO.

    It would copy all of them into one tensor, average that with nobody, and copy them back.
    """
    if engine.dp_world_size == 1:
        engine.enable_backward_allreduce = False


def count_no_hooks(own: Any) -> None:
    """Leaves out the count of the parameters in a backward pass, a walk over all of them in each.

    It is to tell when a pass has ended that was not started by `engine.backward`, which itself ends those that it starts.
    """
    own.should_refresh_expected_hook_count = lambda: False


def find_norms_at_once(own: Any) -> None:
    """Takes the norm of a group's gradients in one operation, and it alone says whether they are finite.

    DeepSpeed looks for inf and NaN in each gradient, then takes the norm of each. A norm of -1 stands for one that is not
    finite: the step is skipped, and a loss scale lowered, as for what is left out. Norms above 1.8e19 count as such.
    """

    def norm(gradients: Any, parameters: Any, norm_type: float = 2.0) -> torch.Tensor:
        total = torch.stack(torch._foreach_norm(list(gradients), 2.0, torch.float32)).square().sum()
        dist.all_reduce(total, group=own.dp_process_group)
        return torch.where(total.isfinite(), total.sqrt(), -1.0)

    own.get_grad_norm_direct = norm
    own.check_overflow = lambda partition_gradients=True: None


def remove_hooks(own: Any) -> None:
    """Removes the hook that each parameter has in the backward pass."""
    for hook in own._grad_acc_hooks:
        hook.remove()
    own._grad_acc_hooks.clear()


def reduce_without_hooks(own: Any) -> None:
    """Under ZeRO 1 reduces the gradients when a step's last backward pass has ended, where the hooks only make the bucket."""
    remove_hooks(own)
    reduce = own.reduce_gradients

    def later(pipeline_parallel: bool = False) -> None:
        own.setup_buckets()
        reduce(pipeline_parallel=pipeline_parallel)

    own.reduce_gradients = later


def take_gradients_as_they_are(own: Any) -> None:
    """Under ZeRO 1 and 2 on one process, which has nobody to average with: autograd adds the gradients up, no bucket is filled."""
    remove_hooks(own)

    def take(pipeline_parallel: bool = False) -> None:
        if not own.is_gradient_accumulation_boundary():
            return
        dtype = own.gradient_accumulation_dtype
        for i, parameters in enumerate(own.params_in_partition):
            own.all_grad_tensors[i] = own.get_all_grad_tensors(parameters, dtype)
            own.averaged_gradients[i] = own.get_flat_partition(
                parameters, own.first_offset[i], own.partition_size[i], dtype, own.device,
                param_group_idx=i, return_tensor_list=True,
            )  # fmt: skip

    own.reduce_gradients = own.overlapping_partition_gradients_reduce_epilogue = take


def leave_weights_where_they_lie(own: Any) -> None:
    """Makes views into the flat weights anew only where they have moved; DeepSpeed does it in each step, "just to be safe"."""
    update = own._update_model_bit16_weights

    def checked(group: int) -> None:
        flat = own.bit16_groups_flat[group]
        rows = zip(own.round_robin_bit16_groups[group], own.round_robin_bit16_offsets[group], strict=True)
        first, size = flat.data_ptr(), flat.element_size()
        if any(p.data_ptr() != first + at * size for p, at in rows):
            update(group)

    own._update_model_bit16_weights = checked


def pieces_of(engine: Any, shares: Mapping[torch.Tensor, float]) -> dict[torch.Tensor, list[Piece]]:
    """Where in the tensors that an engine's optimizer updates the parameters lie, each with its share of the rate."""
    own, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        return {parameter: [Piece(0, parameter.numel(), share)] for parameter, share in shares.items()}
    if stage == 3:
        groups = zip(own.fp32_partitioned_groups_flat, own.fp16_groups, strict=True)
        return {flat: side_by_side(group, shares) for flat, group in groups}
    found = {}
    rows = zip(
        own.single_partition_of_fp32_groups, own.round_robin_bit16_groups, own.round_robin_bit16_offsets, strict=True
    )
    for flat, group, offsets in rows:
        first = dist.get_rank(own.dp_process_group) * flat.numel()
        ends = [(at - first, at - first + p.numel(), p) for at, p in zip(offsets, group, strict=True)]
        inside = [(max(start, 0), min(stop, flat.numel()), p) for start, stop, p in ends]
        found[flat] = merged(Piece(start, stop, shares[p]) for start, stop, p in inside if start < stop)
    return found


def side_by_side(parameters: Any, shares: Mapping[torch.Tensor, float]) -> list[Piece]:
    """The pieces of this rank's parts of parameters, which ZeRO 3 keeps one behind the other, each padded to equal parts."""
    pieces, at = [], 0
    for parameter in parameters:
        pieces.append(Piece(at, at + parameter.partition_numel(), shares[parameter]))
        at = pieces[-1].stop
    return merged(pieces)
