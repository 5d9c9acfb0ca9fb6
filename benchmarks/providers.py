"""What the training benchmark compares: ours, a bare PyTorch loop, Hugging Face's Trainer; each trains on the rows of a turn."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from length_mix import MIX
from presets import DROPOUT, LONGEST, PASSES, Preset, bench_config
from torch.nn import functional as F

from road_ds import optim
from road_ds.config import ModelSpec, RoadConfig, fit_batch, fit_optimizer, fit_precision
from road_ds.data.batches import Padding, assemble
from road_ds.data.features import Batch, FeatureSet
from road_ds.data.passes import Passes
from road_ds.loop import fit
from road_ds.model import build_model, load_tokenizer
from road_ds.objectives import Objective, Teachers, WeightedKD
from road_ds.packing import ATTENTION
from road_ds.preemption import Preemption
from road_ds.ranks import Ranks
from road_ds.run_folder import RunFolder
from road_ds.soft_targets import Origin, SoftTargets, begin, finish, flaw, shard_rows, write_shard
from road_ds.speed import choose_padding, fit_cpu, start_engine
from road_ds.tasks import heads
from road_ds.teachers import CachedTeachers, NoTeachers

LR, DECAY, LAYER_DECAY, CLIP = 1e-4, 0.01, 0.75, 1.0
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
        tokenizer = load_tokenizer(config.model)
        return cls(sources, passes, config, case.preset, ranks, case.precision, tokenizer, CLOCKS[case.clock])

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


class Ours:
    """road_ds under DeepSpeed: the loop of a run, metrics written, nothing saved."""

    objective: Objective = Objective()
    teachers: Teachers = NoTeachers()

    def __init__(self, rows: Rows, padding: str, stage: int, scratch: Path):
        self.rows = rows
        preset, ranks = rows.preset, rows.ranks
        tasks = heads(rows.config)
        model = build_model(ModelSpec(**rows.config.model.model_dump()), tasks, rows.tokenizer, dropout=DROPOUT, seed=0)
        if ranks.device.type == "cpu":
            fit_cpu(model.encoder)
        capability = torch.cuda.get_device_capability() if ranks.device.type == "cuda" else None
        mode, note = choose_padding(
            padding, model.use_packing(), ranks.device.type, capability, rows.precision, compiled=False
        )
        if note:
            raise RuntimeError(note)
        limits = dict.fromkeys(rows.sources, LONGEST)
        self.padding = Padding(mode, rows.tokenizer.pad_token_id, limits)
        ds: dict[str, Any] = {
            "train_batch_size": preset.rows,
            "train_micro_batch_size_per_gpu": preset.micro,
            "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": DECAY}},
            "gradient_clipping": CLIP,
            "zero_optimization": {"stage": stage},
        }
        ds |= fit_batch(ds, PASSES, ranks.world_size)
        fit_precision(ds, rows.precision, ranks.device.type, capability)
        fit_optimizer(ds, ranks.device.type)
        torch.manual_seed(1 + ranks.rank)
        self.engine = start_engine(model, ds, LAYER_DECAY, optim.scheduler(10**6, 0.1, "linear"))
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
        began = rows.clock()
        with Preemption() as preemption:
            fit(
                engine, rows.passes, rows.sources, self.teachers, self.objective, rows.ranks, rows.config,
                steps=steps.stop, start=steps.start, padding=self.padding, folder=self.folder, preemption=preemption,
                evaluate=lambda step: None, save=lambda step: True,
            )  # fmt: skip
        wait(rows.ranks.device)
        self.seconds = rows.clock() - began

    def split(self, step: int) -> dict[str, float]:
        """Milliseconds of the parts of one step; what is left is the data and the loop itself."""
        watch = Stopwatch(self.engine, self.rows)
        self.run(watch, range(step, step + 1))
        parts = dict(watch.milliseconds)
        return {**parts, "data": 1e3 * self.seconds - sum(parts.values())}


class OursTaught(Ours):
    """The same with cached teachers, whose logits are drawn at random, for every data set."""

    def __init__(self, rows: Rows, padding: str, stage: int, scratch: Path, teachers: int):
        super().__init__(rows, padding, stage, scratch)
        names = [f"teacher-{number}" for number in range(teachers)]
        self.objective = WeightedKD(objective="weighted_kd", teachers=dict.fromkeys(rows.sources, names))
        tasks = {name: heads(rows.config)[rows.config.head_of(name)] for name in rows.sources}
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


class Stopwatch:
    """An engine whose parts are timed, each until the device is done with it."""

    def __init__(self, engine: Any, rows: Rows):
        self._engine, self._device, self._clock = engine, rows.ranks.device, rows.clock
        self.milliseconds = {"forward": 0.0, "backward": 0.0, "step": 0.0}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _timed(self, part: str, work: Callable[..., Any], *arguments: Any) -> Any:
        wait(self._device)
        began = self._clock()
        result = work(*arguments)
        wait(self._device)
        self.milliseconds[part] += 1e3 * (self._clock() - began)
        return result

    def __call__(self, *arguments: Any) -> Any:
        return self._timed("forward", self._engine, *arguments)

    def backward(self, loss: torch.Tensor) -> None:
        self._timed("backward", self._engine.backward, loss)

    def step(self) -> None:
        self._timed("step", self._engine.step)


class Bare:
    """A plain loop on our batches, which lie ready, over transformers' layers as they come or over the layers of ours.

    With ours it is the least that our loop can take: the same layers, and no engine.
    """

    def __init__(self, rows: Rows, own: bool):
        self.rows = rows
        device = rows.ranks.device
        tasks = heads(rows.config)
        built = build_model(ModelSpec(**rows.config.model.model_dump()), tasks, rows.tokenizer, dropout=DROPOUT, seed=0)
        state = built.state_dict()
        self.models = {name: built.head_model(name, state).train() for name in tasks}
        encoder = self.models["mrc"].base_model
        for model in self.models.values():
            setattr(model, model.base_model_prefix, encoder)
        if own:
            encoder.set_attn_implementation(ATTENTION)
        dtype = DTYPES[rows.precision]
        every = torch.nn.ModuleList(self.models.values()).to(device, dtype)
        if own and device.type == "cpu":
            fit_cpu(encoder)
        self.parameters: list[torch.Tensor] = list(every.parameters())
        self.half = dtype != torch.float32
        self.masters = [p.detach().float() for p in self.parameters] if self.half else self.parameters
        self.optimizer = torch.optim.AdamW(self.masters, lr=LR, weight_decay=DECAY, fused=True)
        self.padding = Padding("grouped", rows.tokenizer.pad_token_id, dict.fromkeys(rows.sources, LONGEST))

    def turn(self, steps: range) -> Work:
        rows, device = self.rows, self.rows.ranks.device
        plan = assemble(rows.passes, rows.sources, self.padding, rows.ranks, rows.preset.micro, steps)
        ready = [[batch.to(device) for batch in batches] for _, batches in plan]
        wait(device)
        began = rows.clock()
        for batches in ready:
            for batch in batches:
                (self.loss(batch) / len(batches)).backward()
            self.update()
        wait(device)
        seconds = rows.clock() - began
        return Work(seconds, sum(batch.input_ids.numel() for batches in ready for batch in batches))

    def loss(self, batch: Batch) -> torch.Tensor:
        task = self.rows.config.head_of(batch.dataset)
        mask = None if batch.full else batch.attention_mask
        output = self.models[task](input_ids=batch.input_ids, attention_mask=mask, token_type_ids=batch.token_type_ids)
        if task != "mrc":
            return F.cross_entropy(output.logits.float(), batch.labels)
        start, end = batch.labels.view(-1, 2).T
        return (
            F.cross_entropy(output.start_logits.float(), start) + F.cross_entropy(output.end_logits.float(), end)
        ) / 2

    def update(self) -> None:
        if self.half:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, CLIP)
        self.optimizer.step()
        if self.half:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)
        for parameter in self.parameters:
            parameter.grad = None

    def split(self, step: int) -> dict[str, float]:
        device = self.rows.ranks.device
        plan = assemble(
            self.rows.passes,
            self.rows.sources,
            self.padding,
            self.rows.ranks,
            self.rows.preset.micro,
            range(step, step + 1),
        )
        ((_, batches),) = plan
        marks = []
        for batch in [batch.to(device) for batch in batches]:
            marks.append(self.mark(device))
            loss = self.loss(batch) / len(batches)
            marks.append(self.mark(device))
            loss.backward()
            marks.append(self.mark(device))
        self.update()
        end = self.mark(device)
        parts = np.array(marks).reshape(-1, 3)
        return {
            "forward": 1e3 * float((parts[:, 1] - parts[:, 0]).sum()),
            "backward": 1e3 * float((parts[:, 2] - parts[:, 1]).sum()),
            "step": 1e3 * (end - marks[-1]),
            "data": 0.0,
        }

    def mark(self, device: torch.device) -> float:
        wait(device)
        return self.rows.clock()


@contextmanager
def alone(ranks: Ranks) -> Iterator[None]:
    """Hides the launcher's variables of a run on one process: Trainer would wrap its model for several GPUs."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER if ranks.world_size == 1}
    try:
        yield
    finally:
        os.environ.update(hidden)


class HuggingFace:
    """transformers.Trainer, set as its question-answering example sets it."""

    def __init__(self, rows: Rows, by_length: bool, scratch: Path):
        from transformers import (
            AutoConfig,
            AutoModelForQuestionAnswering,
            DataCollatorWithPadding,
            PrinterCallback,
            Trainer,
            TrainerCallback,
            TrainingArguments,
            default_data_collator,
        )
        from transformers.trainer_pt_utils import get_length_grouped_indices

        self.rows, self.by_length = rows, by_length
        preset = rows.preset
        torch.manual_seed(0)
        settings = {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT, **preset.config}
        model = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model("electra", **settings))
        arguments = TrainingArguments(
            output_dir=str(scratch / f"trainer-{by_length}"),
            per_device_train_batch_size=preset.micro,
            gradient_accumulation_steps=rows.pieces,
            learning_rate=LR,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=rows.precision == "bf16",
            fp16=rows.precision == "fp16",
            use_cpu=rows.ranks.device.type == "cpu",
            train_sampling_strategy="group_by_length" if by_length else "random",
        )

        if rows.ranks.world_size == 1:
            arguments._n_gpu = min(1, arguments.n_gpu)  # or it would take all of the host's, with larger batches

        class Clock(TrainerCallback):
            """From the first step's begin to the last step's end: without what Trainer prepares before."""

            began: float | None = None
            ended = 0.0

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                self.began = None

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                if self.began is None:
                    wait(rows.ranks.device)
                    self.began = rows.clock()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                wait(rows.ranks.device)
                self.ended = rows.clock()

        class Grouped(Trainer):
            """Sorts all rows of a turn: on a whole data set the sampler sorts those of 50 steps."""

            train_dataset: Any

            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                if not by_length:
                    return super()._get_train_sampler(train_dataset)
                return get_length_grouped_indices(self.train_dataset["length"], preset.rows, mega_batch_mult=50)

        self.clock = Clock()
        collator: Any = DataCollatorWithPadding(rows.tokenizer) if by_length else default_data_collator
        self.trainer = Grouped(
            model=model,
            args=arguments,
            data_collator=collator,
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)
        self.computed = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, inputs: Any, settings: dict[str, Any]) -> None:
        self.computed += settings["input_ids"].numel()

    def turn(self, steps: range) -> Work:
        from datasets import Dataset

        columns: dict[str, list] = {}
        for name, number in self.rows.drawn(steps):
            row = self.rows.sources[name][number]
            ids, types = np.asarray(row.input_ids), np.asarray(row.token_type_ids)
            length = len(ids)
            padding = 0 if self.by_length else LONGEST - length
            for key, value in {
                "input_ids": [*ids.tolist(), *[self.rows.tokenizer.pad_token_id] * padding],
                "token_type_ids": [*types.tolist(), *[0] * padding],
                "attention_mask": [1] * length + [0] * padding,
                "start_positions": int(row.labels[0]),
                "end_positions": int(row.labels[-1]),
                "length": length,
            }.items():
                columns.setdefault(key, []).append(value)
        self.trainer.train_dataset = Dataset.from_dict(columns)
        self.computed = 0
        self.trainer.train()
        assert self.clock.began is not None
        return Work(self.clock.ended - self.clock.began, self.computed * self.rows.ranks.world_size)

    def split(self, step: int) -> dict[str, float]:
        return {}


def providers(case: Case, rows: Rows) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every provider's name and how to make it."""
    scratch = case.scratch
    for stage, mode in product(case.stages, case.modes):
        name = f"ours {mode}" + (f", ZeRO {stage}" if len(case.stages) > 1 else "")
        yield name, partial(Ours, rows, mode, stage, scratch)
        if case.teachers:
            yield f"{name}, {case.teachers} teachers", partial(OursTaught, rows, mode, stage, scratch, case.teachers)
    if rows.ranks.world_size == 1:
        yield "bare loop", partial(Bare, rows, own=False)
        yield "bare loop, our layers", partial(Bare, rows, own=True)
    for name, by_length in (("Trainer", False), ("Trainer by length", True)):
        yield name, partial(alone(rows.ranks)(HuggingFace), rows, by_length, scratch)
