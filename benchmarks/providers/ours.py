"""road_ds under DeepSpeed, alone and with cached teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from presets import DROPOUT, LONGEST

from providers.case import CLIP, DECAY, LR, Rows, Work, fresh, wait
from road_ds.common.errors import Faults
from road_ds.data.batches import Padding, ahead, assemble, read_together
from road_ds.data.features import FeatureSet
from road_ds.distillation.guard import Guarded
from road_ds.distillation.kd import WeightedKD
from road_ds.distillation.lesson import Lesson
from road_ds.distillation.objective import Objective, Teachers
from road_ds.distillation.soft_targets import Origin, SoftTargets, begin, finish, flaw, shard_rows, write_shard
from road_ds.distillation.teachers import CachedTeachers, NoTeachers
from road_ds.engine.meter import Meter
from road_ds.engine.preemption import Preemption
from road_ds.engine.run_folder import RunFolder
from road_ds.engine.settled import Machine, settle
from road_ds.engine.speed import prepare
from road_ds.engine.start import start
from road_ds.loop import fit
from road_ds.tasks.registry import heads


class Ours:
    """road_ds under DeepSpeed: the loop of a run, metrics written, nothing saved."""

    objective: Objective = Objective()
    teachers: Teachers = NoTeachers()

    def __init__(
        self, rows: Rows, padding: str, stage: int, scratch: Path, compiled: bool = False, joined: bool = False
    ):
        self.rows, self.joined = rows, joined
        preset, ranks = rows.preset, rows.ranks
        self.heads = heads(rows.config)
        model = fresh(rows, DROPOUT)
        machine, faults = Machine.of(ranks), Faults()
        ds: dict[str, Any] = {
            "train_batch_size": preset.rows,
            "train_micro_batch_size_per_gpu": preset.micro,
            "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": DECAY}},
            "gradient_clipping": CLIP,
            "zero_optimization": {"stage": stage},
        }
        config = rows.config.model_copy(update={"padding": padding, "precision": rows.precision, "compile": compiled})
        settled = settle(config, ds, machine, faults)
        faults.end()
        mode, notes = prepare(model, config, settled.ds, machine.device, machine.capability, settled.precision)
        if notes:
            raise RuntimeError("; ".join(notes))
        self.padding = Padding(mode, rows.tokenizer.pad_token_id, dict.fromkeys(rows.sources, LONGEST))
        self.engine = start(model, settled.ds, config, steps=10**6, seed=1 + ranks.rank)
        self.folder = RunFolder(scratch / f"{type(self).__name__}-{padding}-{stage}")
        self.folder.path.mkdir(parents=True, exist_ok=True)

    def turn(self, steps: range) -> Work:
        self.run(self.engine, steps)
        real = [int(self.rows.lengths(range(step, step + 1)).sum()) for step in steps]
        if self.rows.ranks.rank > 0:  # the metrics are written, and the table is made, by rank 0
            return Work(self.seconds, sum(real))
        lines = self.folder.records()[-len(steps) :]
        computed = sum(tokens / (1 - line["padding"]) for tokens, line in zip(real, lines, strict=True))
        return Work(self.seconds, round(computed))

    def run(self, engine: Any, steps: range) -> None:
        rows = self.rows
        lesson = Lesson(Guarded(self.objective), self.teachers, self.heads.of, steps.stop)
        meter = Timed(rows, Meter(rows.ranks, self.folder, rows.sources, rows.preset.micro, self.padding))
        plan = assemble(
            rows.passes, rows.sources, self.padding, rows.ranks, rows.preset.micro, steps, joined=self.joined
        )
        with Preemption() as preemption:
            fit(
                engine, ahead(plan), lesson, meter, rows.ranks, preemption, rows.config,  # type: ignore[arg-type]
                start=steps.start, steps=steps.stop, evaluate=lambda step: False, save=lambda step: True,
            )  # fmt: skip
        wait(rows.ranks.device)
        self.seconds = rows.clock() - meter.began

    def split(self, step: int) -> dict[str, float]:
        """Milliseconds of the parts of one step; what is left is the data and the loop itself."""
        watch = Stopwatch(self.engine, self.rows)
        self.run(watch, range(step, step + 1))
        parts = {part: sum(taken) for part, taken in watch.milliseconds.items()}
        rows = self.rows
        one = range(step, step + 1)
        ((_, batches),) = assemble(
            rows.passes, rows.sources, self.padding, rows.ranks, rows.preset.micro, one, joined=self.joined
        )
        lengths = [sum(sum(batches[at].tokens) for at in places) for places in read_together(batches)]
        both = zip(lengths, watch.milliseconds["forward"], watch.milliseconds["backward"], strict=True)
        self.pieces = [dict(zip(("tokens", "forward ms", "backward ms"), piece, strict=True)) for piece in both]
        return {**parts, "data": 1e3 * self.seconds - sum(parts.values())}


class OursTaught(Ours):
    """The same with cached teachers, whose logits are drawn at random, for every data set."""

    def __init__(self, rows: Rows, padding: str, stage: int, scratch: Path, teachers: int):
        super().__init__(rows, padding, stage, scratch)
        names = [f"teacher-{number}" for number in range(teachers)]
        self.objective = WeightedKD(objective="weighted_kd", teachers=dict.fromkeys(rows.sources, names))
        tasks = {name: self.heads.task(name) for name in rows.sources}
        targets = {
            name: [
                soft_targets(self.folder.path / "targets" / name / teacher, tasks[name], source) for teacher in names
            ]
            for name, source in rows.sources.items()
        }
        self.teachers = CachedTeachers(targets, tasks, rows.ranks.device)


def soft_targets(folder: Path, task: Any, source: FeatureSet) -> SoftTargets:
    """Random logits of the right shape for every row, in the files that `teach` writes."""
    generator = np.random.default_rng(0)
    origin = Origin(source.name, folder.name, "", len(source), "", {}, None, "float16")
    if flaw(folder, origin):
        begin(folder, origin)
        for number, part in enumerate(shard_rows(origin)):
            classes = source.lengths[part] if task.rows_per_feature > 1 else [len(task.labels)] * len(part)
            logits = [generator.normal(size=task.rows_per_feature * int(count)) for count in classes]
            write_shard(folder, number, logits, np.zeros(len(part)), origin)
        finish(folder, origin, folder.name)
    return SoftTargets(folder, origin, folder.name)


class Timed:
    """A meter that notes when the first step begins: what a run does once before is left out, as it is of Trainer."""

    began = 0.0

    def __init__(self, rows: Rows, meter: Meter):
        self._rows, self._meter = rows, meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._meter, name)

    def begin(self, *arguments: Any) -> Any:
        self.began = self.began or self._rows.clock()
        return self._meter.begin(*arguments)


class Stopwatch:
    """An engine whose parts are timed, each until the device is done with it."""

    def __init__(self, engine: Any, rows: Rows):
        self._engine, self._device, self._clock = engine, rows.ranks.device, rows.clock
        self.milliseconds: dict[str, list[float]] = {"forward": [], "backward": [], "step": []}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _timed(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        wait(self._device)
        began = self._clock()
        result = work(*arguments)
        wait(self._device)
        self.milliseconds[part].append(1e3 * (self._clock() - began))
        return result

    def __call__(self, *arguments: Any) -> Any:
        return self._timed("forward", self._engine, *arguments)

    def backward(self, loss: torch.Tensor) -> None:
        self._timed("backward", self._engine.backward, loss)

    def step(self) -> None:
        self._timed("step", self._engine.step)
