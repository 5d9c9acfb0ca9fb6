"""How many rows a micro-batch has where the file says "auto": the most that divide the plan and fit."""

import copy
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from road_ds.common.errors import RoadError
from road_ds.common.ranks import Ranks
from road_ds.data.batch import Batch, Features
from road_ds.data.batches import TRAINED, Draw, Padding
from road_ds.distillation.lesson import Lesson
from road_ds.engine.memory import activations, held, readable

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_ROWS = 16  # more at a time are no faster on a CPU, and each takes memory
ROOM = 0.92  # of a GPU's memory: libraries' workspaces and the gaps between tensors take the rest


@dataclass(frozen=True)
class Demand:
    """What a run takes of each GPU's memory, by the model of memory.py.

    held: bytes before a row is computed; per_token: bytes of a micro-batch's token; lengths: tokens of each row by data set.
    """

    held: float
    per_token: float
    lengths: Mapping[str, np.ndarray]
    padding: Padding

    @classmethod
    def of(
        cls, parameters: int, settings: Any, ds: dict[str, Any], world_size: int, precision: str, checkpointing: bool,
        lengths: Mapping[str, np.ndarray], padding: Padding,
    ) -> "Demand":  # fmt: skip
        """That of a model with so many parameters. settings: its encoder's; ds: DeepSpeed's."""
        size = held(parameters, ds, world_size, precision)
        return cls(size, activations(settings, precision, checkpointing), lengths, padding)

    def heaviest(self, rows: int) -> tuple[str, np.ndarray]:
        """The data set, and its rows, that give the micro-batch of so many rows with the most tokens."""
        longest = {name: np.argsort(values)[::-1] for name, values in self.lengths.items()}
        taken = {name: np.sort(np.resize(order, rows)) for name, order in longest.items()}
        name = max(taken, key=lambda name: self._computed(name, taken[name]))
        return name, taken[name]

    def tokens(self, rows: int) -> int:
        """The most tokens that a micro-batch of so many rows can have, padding included."""
        return self._computed(*self.heaviest(rows))

    def bytes(self, rows: int) -> float:
        """With micro-batches of so many rows."""
        return self.held + self.per_token * self.tokens(rows)

    def fitting(self, sizes: Sequence[int], capacity: float) -> list[int]:
        """The sizes that fit into so many bytes, the largest first. RoadError where none does."""
        found = [rows for rows in sorted(sizes, reverse=True) if self.bytes(rows) <= capacity]
        if not found:
            raise RoadError(
                f"a micro-batch of {min(sizes)} rows takes {readable(self.bytes(min(sizes)))} of each GPU, which has "
                f"{readable(capacity)}: raise zero_optimization.stage, set road.activation_checkpointing, or lower the "
                "max_length of the tasks"
            )
        return found

    def _computed(self, name: str, rows: np.ndarray) -> int:
        return self.padding.computed(name, np.asarray(self.lengths[name])[rows][None])


def refuse_what_cannot_fit(demand: Demand, rows: int, sizes: Sequence[int], capacity: float) -> None:
    """RoadError that names the largest size that fits where one was given that does not."""
    if demand.bytes(rows) > capacity:
        largest = demand.fitting(sizes, capacity)[0]
        raise RoadError(
            f"train_micro_batch_size_per_gpu {rows}: its heaviest micro-batch has {demand.tokens(rows):,} tokens and takes "
            f"{readable(demand.bytes(rows))} of each GPU, which has {readable(capacity)}: take {largest} or less, or "
            '"auto" (the rows of a step stay the same)'
        )


def on_cpu(sizes: Sequence[int]) -> int:
    """The largest of the sizes up to CPU_ROWS."""
    return max(size for size in sizes if size <= CPU_ROWS)


def choose(
    sizes: Sequence[int], demand: Demand, model: nn.Module, lesson: Lesson, sources: Mapping[str, Features], ranks: Ranks,
    precision: str, draws: Mapping[str, Draw] = MappingProxyType({}),
) -> int:  # fmt: skip
    """The most rows, of the sizes, that fit on every rank by the model of memory and by a trial. RoadError where none do.

    draws: as for `assemble`.
    """
    if ranks.device.type == "cpu":
        return on_cpu(sizes)
    free = min(ranks.gather(torch.cuda.mem_get_info(ranks.device)[0]))
    for rows in demand.fitting(sizes, ROOM * free):
        name, numbers = demand.heaviest(rows)
        batch = demand.padding.collate(sources[name], numbers)
        if name in draws:
            batch = draws[name](batch, (TRAINED,), batch.lengths.numpy())
        if not ranks.any(not fits(model, lesson, batch, ranks.device, DTYPES[precision], demand.held)):
            return rows
    raise RoadError(
        f"the GPU ran out of memory on a micro-batch of {min(sizes)} rows, tried out before the training: raise "
        "zero_optimization.stage, set road.activation_checkpointing, or lower the max_length of the tasks"
    )


def fits(
    model: nn.Module, lesson: Lesson, batch: Batch, device: torch.device, dtype: torch.dtype, beside: float
) -> bool:
    """Whether a forward and a backward pass of a copy of the model have room for a batch beside so many bytes.

    beside: what the engine holds, the copy's weights among it. The model and the random states stay as they are.
    """
    room = True
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            _compute(copy.deepcopy(model).to(device, dtype), lesson, batch.to(device), beside)
    except torch.OutOfMemoryError:
        room = False
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return room


def _compute(model: nn.Module, lesson: Lesson, batch: Batch, beside: float) -> None:
    """A forward and a backward pass beside so many bytes."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    rest = torch.empty(max(0, int(beside) - weights), dtype=torch.uint8, device=batch.input_ids.device)
    batch, teaching = lesson.read(batch, 0)
    lesson(model.train(), batch, teaching, 0).total.backward()
    if rest.is_cuda:
        torch.cuda.synchronize(rest.device)
