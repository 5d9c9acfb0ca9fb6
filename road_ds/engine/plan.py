"""The plan of a run before any model is loaded: what will be trained, on how many rows, in how much memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from road_ds.common.errors import Faults
from road_ds.common.log import counted, table
from road_ds.config.fit import fit_buckets, fit_precision
from road_ds.config.road import RoadConfig
from road_ds.data.features import FeatureSet
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.objective import Objective
from road_ds.distillation.registry import adversarial_of, teachers_of
from road_ds.engine.settled import Machine, settle
from road_ds.models.build import fresh_model
from road_ds.models.configuration import base_config, check_lengths, load_tokenizer
from road_ds.tasks.base import Task

HALF = (8, 0)  # the compute capability of a GPU that is planned for and is not here


@dataclass(frozen=True)
class DatasetPlan:
    """What one data set contributes to a run."""

    name: str
    head: str
    examples: int
    features: int
    tokens: float  # mean per feature
    epochs: float
    dev: int
    warnings: list[str]


def report(config: RoadConfig, ds: dict[str, Any], gpus: int | None = None, faults: Faults | None = None) -> str:
    """The plan as text: data sets, steps, parameters, memory, warnings. RoadError with all that would stop the run.

    gpus: plan for so many GPUs, whatever this machine has (default: this machine); faults: those found so far.
    """
    faults = faults or Faults()
    here = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    capability = here or (HALF if gpus else None)
    world_size = gpus or max(1, torch.cuda.device_count())
    with faults.caught():
        on_gpus = fit_precision({**ds}, config.precision, "cuda", here or HALF)
    machine = Machine("cuda", capability, world_size)  # what does not run on this CPU may run where it is planned for
    this = counted(world_size, "GPU") if capability else counted(world_size, "process", "processes")
    settled = settle(config, ds, machine, faults)
    tasks, objective, precision, ds = settled.heads, settled.objective, settled.precision, settled.ds
    with faults.caught():
        tokenizer = load_tokenizer(config.model)
        with faults.caught():
            settings = base_config(config.model, tokenizer, config.dropout)
            check_lengths(settings, tasks)
        rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache, faults)
    faults.end()
    train, dev = rows.train, rows.dev
    passes, steps = plan(config, ds["train_batch_size"], {name: source.lengths for name, source in train.items()})
    rows = ds["train_batch_size"] // config.passes
    pieces = rows // (ds["train_micro_batch_size_per_gpu"] * world_size)
    draws = passes.draws_until(steps)
    plans = [dataset_plan(name, config, tasks, train[name], dev.get(name), draws[name] * rows) for name in train]
    encoder, own = parameters(settings, tasks)
    lines = [
        dataset_table(plans, passes.weights),
        "",
        f"{counted(steps, 'step')} of {counted(config.passes, 'pass', 'passes')} x {rows} rows = {ds['train_batch_size']} rows a step, "
        f"{steps * ds['train_batch_size']:,} in all",
        f"each pass: {counted(pieces, 'micro-batch', 'micro-batches')} of "
        f"{ds['train_micro_batch_size_per_gpu']} rows on {counted(world_size, 'process', 'processes')}, {precision}"
        + (" (fp16 below compute capability 8.0)" if precision == "bf16" and not here else ""),
        *(
            f"{objective.objective}: {counted(len(names), 'teacher')} of {name}"
            for name, names in teachers_of(objective).items()
        ),
        *more_passes(config, objective, steps),
        f"{settings.model_type}: {encoder / 1e6:.1f} M parameters in the encoder, "
        + ", ".join(f"{count:,} in the head {name}" for name, count in own.items()),
        "",
        memory_table(encoder + sum(own.values()), ds, [(this, world_size, precision), ("8 GPUs", 8, on_gpus)]),
        "(weights, gradients, Adam's states and ZeRO's bucket of gradients; activations come on top and grow with "
        "micro-batch x tokens)",
    ]
    warnings = [warning for p in plans for warning in p.warnings]
    return "\n".join([*lines, *(["", "warnings:", *(f"  {warning}" for warning in warnings)] if warnings else [])])


def more_passes(config: RoadConfig, objective: Objective, steps: int) -> list[str]:
    """What a run computes beside one forward and one backward pass over each row, a line each."""
    lines, settings = [], adversarial_of(objective)
    if config.freelb is not None:
        lines.append(f"freelb: {config.freelb.steps} forward and backward passes over each row instead of 1")
    if settings is not None:
        own = counted(len(settings.steps(0, steps)), "step")
        lines.append(
            "adversarial: student and teachers read each row of a data set with teachers twice, as it is and generated; the "
            f"generator reads it once, and has {own} of its own, in which all three read its text"
        )
    return lines


def dataset_table(plans: Sequence[DatasetPlan], weights: np.ndarray) -> str:
    """The plans of data sets as a table; weights: the probability of each in a draw."""
    rows = [
        (p.name, p.head, f"{p.examples:,}", f"{p.features:,}", f"{p.tokens:.0f}", f"{w:.1%}", f"{p.epochs:.2f}", f"{p.dev:,}")
        for p, w in zip(plans, weights, strict=True)
    ]  # fmt: skip
    return table(rows, ("data set", "head", "train rows", "features", "tokens", "drawn", "epochs", "dev rows"))


def dataset_plan(
    name: str, config: RoadConfig, tasks: dict[str, Task], train: FeatureSet, dev: FeatureSet | None, drawn: int
) -> DatasetPlan:
    """One data set's share of the run: epochs from the rows that will be drawn, and what looks unintended."""
    head = config.head_of(name)
    epochs = drawn / len(train)
    warnings = []
    if epochs < 1:
        warnings.append(
            f"{name}: only {drawn:,} of {len(train):,} features will be seen: more steps, or another sampling"
        )
    if epochs > 10:
        warnings.append(
            f"{name}: each feature is seen {epochs:.0f} times: fewer steps, or sampling proportional or by power"
        )
    cut = float(np.mean(np.asarray(train.lengths) >= tasks[head].max_length))
    if tasks[head].rows_per_feature == 1 and cut > 0.02:
        warnings.append(
            f"{name}: {cut:.0%} of the rows reach max_length {tasks[head].max_length}: their ends may be cut off"
        )
    if dev is None:
        warnings.append(f"{name}: no dev part: nothing will be evaluated")
    else:
        leaked = shared_texts(train, dev)
        if leaked:
            warnings.append(f"{name}: {leaked} of {dev.manifest.examples} dev rows have the text of a train row")
    for part, source in (("train", train), ("dev", dev)):
        if source is not None and source.manifest.skipped:
            warnings.append(
                f"{name} {part}: {len(source.manifest.skipped)} bad rows skipped, the first: {source.manifest.skipped[0]}"
            )
        if source is not None and source.manifest.negatives:
            warnings.append(
                f"{name} {part}: {source.manifest.negatives:,} of the rows are negative questions made here"
            )
        if source is not None and source.manifest.dropped:
            warnings.append(f"{name} {part}: rows dropped by label: {source.manifest.dropped}")
    return DatasetPlan(
        name=name,
        head=head,
        examples=train.manifest.examples,
        features=len(train),
        tokens=float(np.mean(train.lengths)),
        epochs=epochs,
        dev=dev.manifest.examples if dev is not None else 0,
        warnings=warnings,
    )


def shared_texts(train: FeatureSet, dev: FeatureSet) -> int:
    """How many dev rows have the text of a train row. Only the dev part's texts are held in memory."""
    texts = Counter((e.text_a, e.text_b) for e in dev.examples())
    return sum(texts.pop((e.text_a, e.text_b), 0) for e in train.examples())


def parameters(settings: Any, tasks: dict[str, Task]) -> tuple[int, dict[str, int]]:
    """Parameters of the shared encoder and of each head, counted without memory for them."""
    encoders, own = [], {}
    with torch.device("meta"):
        for name, task in tasks.items():
            shell = fresh_model(settings, task)
            encoder = sum(p.numel() for p in getattr(shell, shell.base_model_prefix).parameters())
            own[name] = sum(p.numel() for p in shell.parameters()) - encoder
            encoders.append(encoder)
    return max(encoders), own


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


def readable(size: float) -> str:
    """A number of bytes in MiB, or in GiB from there on."""
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def bucket(ds: dict[str, Any], stage: int, parameters: int, precision: str) -> int:
    """Bytes that ZeRO holds during the backward pass for gradients on their way to the other GPUs."""
    zero = {**ds.get("zero_optimization", {}), "stage": stage}
    if stage == 0 or not zero.get("contiguous_gradients", True):
        return 0
    elements = fit_buckets({"zero_optimization": zero}, parameters)["zero_optimization"]["reduce_bucket_size"]
    buffers = 2 if zero.get("overlap_comm") and stage < 3 else 1
    return int(elements) * buffers * (4 if precision == "fp32" else 2)


def memory_table(count: int, ds: dict[str, Any], plans: list[tuple[str, int, str]]) -> str:
    """Memory per process by ZeRO stage; plans: (what they are called, how many processes, precision), each once."""
    columns = {f"{name}, {precision}": (size, precision) for name, size, precision in plans}
    rows = []
    for stage in range(4):
        sizes = [memory(count, n, kind)[stage] + bucket(ds, stage, count, kind) for n, kind in columns.values()]
        rows.append((f"ZeRO {stage}", *map(readable, sizes)))
    return table(rows, ("memory on each of", *columns))
