"""What all providers of the training benchmark share: the rows of a turn, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from length_mix import MIX
from presets import DROPOUT, LONGEST, PASSES, Preset, bench_config, tokenizer_of

from road_ds.common.ranks import Ranks
from road_ds.config.road import RoadConfig
from road_ds.data.batches import Padding
from road_ds.data.features import FeatureSet
from road_ds.data.passes import Passes
from road_ds.engine.micro_batch import Demand
from road_ds.engine.plan import parameters
from road_ds.models.build import build_model
from road_ds.models.configuration import base_config
from road_ds.models.multi_task import MultiTaskModel
from road_ds.tasks.registry import heads

LR, DECAY, CLIP = 1e-4, 0.01, 1.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher tells its processes


class Case(NamedTuple):
    """What is compared, in plain values that another process can be given. scratch: holds the rows, in `mix`."""

    preset: Preset
    precision: str
    clock: str
    modes: list[str]
    stages: list[int]
    teachers: int
    scratch: Path


class Work(NamedTuple):
    """What a provider did in a turn. computed: tokens that went through its encoder, padding included."""

    seconds: float
    computed: int


class Rows(NamedTuple):
    """What all providers share: the sources, the plan over them, and the run's sizes and device."""

    sources: dict[str, FeatureSet]
    passes: Passes
    config: RoadConfig
    preset: Preset
    ranks: Ranks
    precision: str
    tokenizer: Any
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def of(cls, case: Case, ranks: Ranks) -> Rows:
        """Opens the rows and plans the draws."""
        config = bench_config(case.preset)
        sources = {name: FeatureSet(name, case.scratch / "mix" / name, name) for name in MIX}
        passes = Passes(
            {name: np.asarray(source.lengths) for name, source in sources.items()}, np.full(len(MIX), 1 / len(MIX)),
            passes=PASSES, rows=case.preset.rows // PASSES, seed=0, window=config.length_window,
        )  # fmt: skip
        tokenizer, clock = tokenizer_of(config), CLOCKS[case.clock]
        return cls(sources, passes, config, case.preset, ranks, case.precision, tokenizer, clock)

    def drawn(self, steps: range) -> list[tuple[str, int]]:
        """The rows of some steps, over all ranks: data set and number."""
        passes = (taken for step in steps for taken in self.passes.draw(step))
        return [(taken.dataset, int(row)) for taken in passes for row in taken.rows]

    def lengths(self, steps: range) -> np.ndarray:
        """Tokens of each row of some steps."""
        return np.array([self.sources[name].lengths[row] for name, row in self.drawn(steps)])

    @property
    def pieces(self) -> int:
        """Micro-batches per step on one rank."""
        return self.preset.rows // (self.preset.micro * self.ranks.world_size)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def as_torch_comes() -> Iterator[None]:
    """torch's attention with cuDNN's in it, which ours leaves out for the whole process."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def fresh(rows: Rows, dropout: float) -> MultiTaskModel:
    """The model of ours, in host memory. Its weights are drawn on the device, where a large model's take no time."""
    with rows.ranks.device:
        model = build_model(rows.config.model, heads(rows.config), rows.tokenizer, dropout=dropout, seed=0)
    return model.to("cpu")


def demand_of(rows: Rows, stage: int, padding: str) -> Demand:
    """What ours takes of each GPU's memory, by the model."""
    settings = base_config(rows.config.model, rows.tokenizer, DROPOUT)
    encoder, own = parameters(settings, heads(rows.config))
    ds = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": stage}}
    lengths = {name: source.lengths for name, source in rows.sources.items()}
    return Demand.of(
        encoder + sum(own.values()), settings, ds, rows.ranks.world_size, rows.precision, False,
        lengths, Padding(padding, 0, dict.fromkeys(lengths, LONGEST)),  # type: ignore[arg-type]
    )  # fmt: skip
