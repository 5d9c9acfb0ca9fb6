"""The plan of a run before any model is loaded: what will be trained, on how many rows, in how much memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from road_ds.common.errors import Faults
from road_ds.common.log import counted, table
from road_ds.config.fit import AUTO, MICRO, fit_precision, micro_sizes
from road_ds.config.road import RoadConfig
from road_ds.data.batches import Padding
from road_ds.data.features import FeatureSet
from road_ds.data.overlap import shared_texts
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.objective import Objective, Taught
from road_ds.distillation.registry import adversarial_of, neighbours_of, teachers_of
from road_ds.distillation.teachers import check_teachers
from road_ds.engine.memory import bucket, memory, readable
from road_ds.engine.micro_batch import ROOM, Demand, on_cpu, refuse_what_cannot_fit
from road_ds.engine.settled import Machine, settle
from road_ds.engine.speed import choose_padding
from road_ds.models.build import fresh_model
from road_ds.models.configuration import base_config, check_lengths, load_tokenizer
from road_ds.models.generator import generator_config, own_parameters
from road_ds.tasks.base import Task
from road_ds.tasks.inferred import with_labels
from road_ds.tasks.registry import Heads

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
        config, tasks, labels = with_labels(config, tasks, faults)
        tokenizer = load_tokenizer(config.model)
        with faults.caught():
            settings = base_config(config.model, tokenizer, config.dropout)
            check_lengths(settings, tasks)
        rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache, faults)
        check_teachers(objective, tasks, rows.train, tokenizer, faults)
    faults.end()
    train, dev = rows.train, rows.dev
    lengths = {name: source.lengths for name, source in train.items()}
    passes, steps = plan(config, ds["train_batch_size"], lengths)
    rows = ds["train_batch_size"] // config.passes
    draws = passes.draws_until(steps)
    plans = [dataset_plan(name, config, tasks, train[name], dev.get(name), draws[name] * rows) for name in train]
    encoder, own = parameters(settings, tasks)
    count = encoder + sum(own.values())
    mode, _ = choose_padding(config.padding, "", machine.device, capability, precision, config.compile)
    limits = {name: tasks.task(name).max_length for name in train}
    demand = Demand.of(
        count, settings, ds, world_size, precision, config.activation_checkpointing, lengths, Padding(mode, 0, limits)
    )
    sizes = micro_sizes(ds["train_batch_size"], config.passes, world_size)
    micro, why = micro_batch(ds[MICRO], sizes, demand, on_gpu=capability is not None)
    lines = [
        dataset_table(plans, passes.weights),
        "",
        *labels,
        f"{counted(steps, 'step')} of {counted(config.passes, 'pass', 'passes')} x {rows} rows = {ds['train_batch_size']} rows a step, "
        f"{steps * ds['train_batch_size']:,} in all",
        "each pass: "
        + (f"{counted(rows // (micro * world_size), 'micro-batch', 'micro-batches')} of {micro} rows" if micro else "")
        + f"{why} on {counted(world_size, 'process', 'processes')}, {precision}"
        + (" (fp16 below compute capability 8.0)" if precision == "bf16" and not here else ""),
        *(
            f"{objective.objective}: {counted(len(names), 'teacher')} of {name}"
            for name, names in teachers_of(objective).items()
        ),
        *more_passes(config, objective, steps),
        f"{settings.model_type}: {encoder / 1e6:.1f} M parameters in the encoder, "
        + ", ".join(f"{count:,} in the head {name}" for name, count in own.items()),
        "",
        memory_table(count, ds, [(this, world_size, precision), ("8 GPUs", 8, on_gpus)]),
        "(weights, gradients, Adam's states and ZeRO's bucket of gradients; activations come on top and grow with "
        f"micro-batch x tokens{uncounted(objective)})",
        *(["", micro_batch_table(demand, sizes, this, ds)] if capability else []),
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
    for name, near in neighbours_of(objective).items():
        lines.append(f"neighbours of {name}: {near.k} of each row by {near.by}, {near.keep} learned from at each visit")
    return lines


def uncounted(objective: Objective) -> str:
    """What a run holds beside its model and is no part of the memory that is told."""
    if not isinstance(objective, Taught) or objective.source == "cached":
        return ""
    generator = "" if objective.adversarial is None else ", nor are the generator and its optimizer"
    return f"; what teaches beside the student is not counted{generator}"


def micro_batch(asked: int | str, sizes: Sequence[int], demand: Demand, on_gpu: bool) -> tuple[int | None, str]:
    """The rows of a micro-batch, None where only a GPU that is not here can tell, and what is to say of them.

    RoadError for a number whose micro-batches cannot fit into the GPU that is here.
    """
    if not on_gpu:
        return (on_cpu(sizes), " (auto)") if asked == AUTO else (int(asked), "")
    if not torch.cuda.is_available():
        return (None, "micro-batches of as many rows as fit (auto, see below)") if asked == AUTO else (int(asked), "")
    capacity = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if asked == AUTO:
        return demand.fitting(sizes, ROOM * capacity)[0], " (auto, to be tried out at the start)"
    refuse_what_cannot_fit(demand, int(asked), sizes, capacity)
    return int(asked), ""


def micro_batch_table(demand: Demand, sizes: Sequence[int], machine: str, ds: dict[str, Any]) -> str:
    """What micro-batches take, by their rows: the heaviest of the run, with all that the GPU holds beside it."""
    rows = [(str(size), f"{demand.tokens(size):,}", readable(demand.bytes(size))) for size in sizes[-8:]]
    stage = ds["zero_optimization"]["stage"]
    return table(rows, ("rows of a micro-batch", "tokens at most", f"memory on each of {machine} under ZeRO {stage}"))


def dataset_table(plans: Sequence[DatasetPlan], weights: np.ndarray) -> str:
    """The plans of data sets as a table; weights: the probability of each in a draw."""
    rows = [
        (p.name, p.head, f"{p.examples:,}", f"{p.features:,}", f"{p.tokens:.0f}", f"{w:.1%}", f"{p.epochs:.2f}", f"{p.dev:,}")
        for p, w in zip(plans, weights, strict=True)
    ]  # fmt: skip
    return table(rows, ("data set", "head", "train rows", "features", "tokens", "drawn", "epochs", "dev rows"))


def dataset_plan(
    name: str, config: RoadConfig, tasks: Heads, train: FeatureSet, dev: FeatureSet | None, drawn: int
) -> DatasetPlan:
    """One data set's share of the run: epochs from the rows that will be drawn, and what looks unintended."""
    head = tasks.of[name]
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
    longest = train.lengths if train.sequences is None else train.sequences[:, 0]
    cut = float(np.mean(np.asarray(longest) >= tasks[head].max_length))
    if tasks[head].truncates and cut > 0.02:
        warnings.append(
            f"{name}: {cut:.0%} of the rows reach max_length {tasks[head].max_length}: their ends may be cut off"
        )
    if dev is None:
        warnings.append(f"{name}: no dev part: nothing will be evaluated")
    else:
        leaked = shared_texts(train, dev)
        if leaked:
            warnings.append(f"{name}: {len(leaked)} of {dev.manifest.examples} dev rows have the text of a train row")
    for part, source in (("train", train), ("dev", dev)):
        if source is not None and (unread := source.unread()):
            warnings.append(f"{name} {part}: {unread}")
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


def parameters(settings: Any, tasks: dict[str, Task]) -> tuple[int, dict[str, int]]:
    """Parameters of the shared encoder and of each head, counted without memory for them."""
    encoders, own = [], {}
    with torch.device("meta"):
        for name, task in tasks.items():
            shell = fresh_model(settings, task)
            encoder = sum(p.numel() for p in getattr(shell, shell.base_model_prefix).parameters())
            own[name] = sum(p.numel() for p in shell.parameters()) - encoder
            if (asked := task.generated_by()) is not None:
                own[name] += own_parameters(generator_config(asked, settings))
            encoders.append(encoder)
    return max(encoders), own


def memory_table(count: int, ds: dict[str, Any], plans: list[tuple[str, int, str]]) -> str:
    """Memory per process by ZeRO stage; plans: (what they are called, how many processes, precision), each once."""
    columns = {f"{name}, {precision}": (size, precision) for name, size, precision in plans}
    rows = []
    for stage in range(4):
        sizes = [memory(count, n, kind)[stage] + bucket(ds, stage, count, kind) for n, kind in columns.values()]
        rows.append((f"ZeRO {stage}", *map(readable, sizes)))
    return table(rows, ("memory on each of", *columns))
