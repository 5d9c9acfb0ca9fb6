"""What a run is made of beside its weights: settings on this machine, tokenizer, rows, teachers, the plan, the micro-batch."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from road_ds.common.errors import Faults
from road_ds.common.log import say, versions, warn
from road_ds.common.ranks import Ranks
from road_ds.common.strict_json import flat_keys
from road_ds.config.fit import AUTO, MICRO, fit_batch, micro_sizes
from road_ds.config.road import RoadConfig
from road_ds.data.batches import Padding
from road_ds.data.passes import Passes, plan
from road_ds.data.rows import Rows
from road_ds.distillation.guard import Guarded
from road_ds.distillation.lesson import Lesson
from road_ds.distillation.minimax import Minimax
from road_ds.distillation.neighbours import Neighbours
from road_ds.distillation.registry import adversarial_of, teachers_of
from road_ds.distillation.retrieve import open_neighbours
from road_ds.distillation.teachers import AnyTeachers, CachedTeachers, open_teachers
from road_ds.engine import surroundings
from road_ds.engine.checkpoint import Checkpoint
from road_ds.engine.generator import open_generator
from road_ds.engine.micro_batch import Demand, choose, refuse_what_cannot_fit
from road_ds.engine.resume import OWN
from road_ds.engine.settled import Machine, Settled, settle
from road_ds.models.configuration import base_config, check_lengths, load_tokenizer
from road_ds.models.masked_lm import MaskedLM
from road_ds.models.multi_task import MultiTaskModel, parameter_count
from road_ds.tasks.inferred import with_labels
from road_ds.tasks.registry import Heads


@dataclass(frozen=True)
class Parts:
    """What a run is made of before it has weights. saved: what decides on the weights, which a resumed run must keep."""

    settled: Settled
    heads: Heads
    tokenizer: Any
    rows: Rows
    teachers: AnyTeachers
    neighbours: dict[str, Neighbours]
    generator: MaskedLM | None
    passes: Passes
    steps: int
    resolved: dict[str, Any]  # the settings with every default
    saved: dict[str, Any]

    def lesson(self, padding: Padding) -> Lesson:
        """What a batch teaches; padding: how those of neighbours are made."""
        objective, heads = Guarded(self.settled.objective), self.heads.of
        minimax = Minimax(self.neighbours, self.teachers, heads, padding) if self.neighbours else None
        return Lesson(objective, self.teachers, heads, self.steps, minimax=minimax)


def gather(config: RoadConfig, ds: dict[str, Any], ranks: Ranks, machine: Machine) -> Parts:
    """What a run is made of, the same on all ranks. RoadError with all that is wrong with settings, or with the rows."""
    faults = Faults()
    settled = settle(config, ds, machine, faults)
    faults.end()
    for note in surroundings.notes():
        warn(note)
    config, heads, lines = ranks.together(lambda: with_labels(config, settled.heads))
    if lines:
        say(*lines)
    tokenizer = ranks.together(lambda: load_tokenizer(config.model))
    check_lengths(base_config(config.model, tokenizer, config.dropout), heads)
    rows = ranks.together(
        lambda: Rows.load(config.datasets, heads.by_dataset(), tokenizer, config.cache, verify=ranks.local_rank == 0)
    )
    places = {"cache": config.cache, "config": config.file}
    neighbours = ranks.together(
        lambda: open_neighbours(settled.objective, heads, rows.train, tokenizer, ranks, **places)
    )
    teachers = ranks.together(
        lambda: open_teachers(settled.objective, heads, rows.train, tokenizer, ranks, neighbours=neighbours, **places)
    )
    generator, adversarial = None, adversarial_of(settled.objective)
    if adversarial is not None:
        generator, written_by = ranks.together(
            lambda: open_generator(adversarial, config.model, tokenizer, heads, config.dropout)
        )
    counted = heads.counting({name: source.labels for name, source in rows.train.items()})
    settled.filled.extend(heads.changes(counted))
    lengths = {name: source.lengths for name, source in rows.train.items()}
    passes, steps = plan(config, settled.ds["train_batch_size"], lengths)
    block = "auto" if settled.precision in settled.ds else settled.precision  # DeepSpeed's block says it already
    road = {**config.model_dump(), "steps": steps, "epochs": None, "precision": block}
    resolved = {**settled.ds, "road": road}
    saved = {**resolved, "data": rows.fingerprints()["train"], "pairs": heads.pairs(rows.pairs)}
    if teachers.identity:
        saved["teachers"] = teachers.identity
    if generator is not None:
        saved["generator"] = written_by
    if neighbours:
        saved["neighbours"] = {name: found.identity for name, found in neighbours.items()}
    ranks.agree({key: value for key, value in flat_keys(saved).items() if key not in OWN})
    return Parts(
        settled, counted.trained_on(rows.pairs).reading(tokenizer), tokenizer, rows, teachers, neighbours, generator, passes, steps,
        resolved, saved,
    )  # fmt: skip


def sized(
    config: RoadConfig, parts: Parts, ranks: Ranks, model: MultiTaskModel, padding: Padding, found: Checkpoint | None
) -> Parts:
    """The same with the rows of a micro-batch: those given, else those of the resumed run, else as many as fit."""
    ds, precision = parts.settled.ds, parts.settled.precision
    lengths = {name: source.lengths for name, source in parts.rows.train.items()}
    own = parameter_count(parts.generator) if parts.generator else 0
    demand = Demand.of(
        parameter_count(model) + own, model.encoder.config, ds, ranks.world_size, precision, config.activation_checkpointing,
        lengths, padding,
    )  # fmt: skip
    lesson = parts.lesson(padding)
    if parts.generator:  # as many rows as with generated ones
        taught = teachers_of(parts.settled.objective)
        lesson = replace(lesson, text=lambda batch, _: batch.joined(batch) if batch.dataset in taught else batch)
    sizes = micro_sizes(ds["train_batch_size"], config.passes, ranks.world_size)
    before = found.manifest.config.get(MICRO) if found else None  # other micro-batches would draw another dropout
    micro = ds[MICRO]
    if micro == AUTO:
        micro = before if before in sizes else choose(
            sizes, demand, model, lesson, parts.rows.train, ranks, precision, parts.heads.draws()
        )  # fmt: skip
    elif ranks.device.type == "cuda":
        refuse_what_cannot_fit(demand, micro, sizes, torch.cuda.get_device_properties(ranks.device).total_memory)
    ds = ds | fit_batch(ds | {MICRO: micro}, config.passes, ranks.world_size)
    pieces = {key: ds[key] for key in (MICRO, "gradient_accumulation_steps")}
    return replace(
        parts, settled=replace(parts.settled, ds=ds), resolved=parts.resolved | pieces, saved=parts.saved | pieces
    )


def facts_of(config: RoadConfig, parts: Parts, machine: Machine, padding: Padding) -> dict[str, Any]:
    """What results.json says of a run beside its scores."""
    return {
        "world_size": machine.processes,
        "device": torch.cuda.get_device_name() if machine.capability else "cpu",
        "precision": parts.settled.precision,
        "padding": padding.mode,
        "seed": config.seed,
        "data": parts.rows.fingerprints(),
        "teachers": parts.teachers.identity,
        "rows_of_soft_targets": parts.teachers.rows() if isinstance(parts.teachers, CachedTeachers) else 0,
        "generator": parts.saved.get("generator"),
        "versions": versions(),
    }
