"""The plan of a run before any model is loaded: what will be trained, on how many rows, in how much memory."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from road_ds.config import RoadConfig, fit_batch, fit_optimizer, fit_precision
from road_ds.data.features import FeatureSet
from road_ds.log import counted, table
from road_ds.model import base_config, check_lengths, fresh_model, load_tokenizer
from road_ds.objectives import objective_from, teachers_of
from road_ds.tasks import Task, heads
from road_ds.train import load_data, plan


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


def report(config: RoadConfig, ds: dict[str, Any], world_size: int) -> str:
    """The plan as text: data sets, steps, parameters, memory per GPU, warnings. RoadError for what would stop the run."""
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    ds = ds | fit_batch(ds, config.passes, world_size)
    precision = fit_precision(ds, config.precision, "cuda", capability)  # the plan may be for another machine
    fit_optimizer(ds, "cuda" if capability else "cpu")
    tasks, objective = heads(config), objective_from(config)
    tokenizer = load_tokenizer(config.model)
    settings = base_config(config.model, tokenizer, config.dropout)
    check_lengths(settings, tasks)
    train, dev = load_data(config, tasks, tokenizer)
    passes, steps = plan(config, ds, train)
    rows = ds["train_batch_size"] // config.passes
    pieces = rows // (ds["train_micro_batch_size_per_gpu"] * world_size)
    draws = passes.draws_until(steps)
    plans = [dataset_plan(name, config, tasks, train[name], dev.get(name), draws[name] * rows) for name in train]
    encoder, own = parameters(settings, tasks)
    lines = [
        table(
            [
                (
                    p.name,
                    p.head,
                    f"{p.examples:,}",
                    f"{p.features:,}",
                    f"{p.tokens:.0f}",
                    f"{w:.1%}",
                    f"{p.epochs:.2f}",
                    f"{p.dev:,}",
                )
                for p, w in zip(plans, passes.weights, strict=True)
            ],
            ("data set", "head", "train rows", "features", "tokens", "drawn", "epochs", "dev rows"),
        ),
        "",
        f"{counted(steps, 'step')} of {counted(config.passes, 'pass', 'passes')} x {rows} rows = {ds['train_batch_size']} rows a step, "
        f"{steps * ds['train_batch_size']:,} in all",
        f"each pass: {counted(pieces, 'micro-batch', 'micro-batches')} of "
        f"{ds['train_micro_batch_size_per_gpu']} rows on {counted(world_size, 'process', 'processes')}, {precision}",
        *(
            f"{objective.objective}: {counted(len(names), 'teacher')} of {name}"
            for name, names in teachers_of(objective).items()
        ),
        f"{settings.model_type}: {encoder / 1e6:.1f} M parameters in the encoder, "
        + ", ".join(f"{count:,} in the head {name}" for name, count in own.items()),
        "",
        memory_table(encoder + sum(own.values()), world_size, precision),
        "(weights, gradients and Adam's states; activations come on top and grow with micro-batch x tokens)",
    ]
    warnings = [warning for p in plans for warning in p.warnings]
    return "\n".join([*lines, *(["", "warnings:", *(f"  {warning}" for warning in warnings)] if warnings else [])])


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
            warnings.append(f"{name}: {leaked} of {dev.manifest['examples']} dev rows have the text of a train row")
    for part, source in (("train", train), ("dev", dev)):
        if source is not None and source.manifest["skipped"]:
            warnings.append(
                f"{name} {part}: {len(source.manifest['skipped'])} bad rows skipped, the first: {source.manifest['skipped'][0]}"
            )
        if source is not None and source.manifest["negatives"]:
            warnings.append(
                f"{name} {part}: {source.manifest['negatives']:,} of the rows are negative questions made here"
            )
        if source is not None and source.manifest["dropped"]:
            warnings.append(f"{name} {part}: rows dropped by label: {source.manifest['dropped']}")
    return DatasetPlan(
        name=name,
        head=head,
        examples=train.manifest["examples"],
        features=len(train),
        tokens=float(np.mean(train.lengths)),
        epochs=epochs,
        dev=dev.manifest["examples"] if dev is not None else 0,
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


def memory_table(count: int, world_size: int, precision: str) -> str:
    """Memory per GPU by ZeRO stage, on this world size and on 8 GPUs."""
    sizes = sorted({world_size, 8})
    rows = [
        (f"ZeRO {stage}", *(readable(memory(count, size, precision)[stage]) for size in sizes)) for stage in range(4)
    ]
    return table(rows, ("memory per GPU", *(f"{size} GPU{'s' * (size > 1)}" for size in sizes)))
