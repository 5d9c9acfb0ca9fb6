"""What the steps of a run measured: collected without waiting on the device, written to metrics.jsonl when asked."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from road_ds.common.log import warn
from road_ds.common.ranks import Ranks
from road_ds.data.batches import Padding
from road_ds.data.features import FeatureSet
from road_ds.data.passes import Pass, micro_batches
from road_ds.distillation.objective import Loss
from road_ds.engine.forwards import COUNTED, Forwards
from road_ds.engine.run_folder import RunFolder


@dataclass
class StepRecord:
    """One step until it is written; the losses of this rank's micro-batches stay on the device."""

    step: int
    lr: float
    drawn: list[Pass] = field(default_factory=list)
    losses: list[torch.Tensor] = field(default_factory=list)
    parts: list[dict[str, torch.Tensor]] = field(default_factory=list)  # of each loss, by name
    cosines: dict[str, float] = field(default_factory=dict)
    beside: dict[str, torch.Tensor] = field(default_factory=dict)  # measured before it
    gradient_norm: Any = None
    applied: bool = True
    forwards: Forwards | None = None
    rows: Counter[str] = field(default_factory=Counter)  # this rank's, by COUNTED
    places: list[int] = field(default_factory=list)  # of each loss, its micro-batch's among the step's

    def add(self, loss: Loss, place: int) -> None:
        """Takes in the micro-batch that is the step's so-manieth, from 0; again for another view of it."""
        if self.forwards:
            self.rows += self.forwards.take()
        self.losses.append(loss.total.detach())
        self.parts.append(loss.parts())
        self.places.append(place)

    def end(self) -> None:
        """Puts the losses, which came as the batches were read, in the order of the draws."""
        order = sorted(range(len(self.places)), key=lambda at: self.places[at])
        self.losses, self.parts = [self.losses[at] for at in order], [self.parts[at] for at in order]


class Meter:
    """Turns step records into lines of metrics.jsonl (rank 0).

    A loss is the mean over all ranks' rows. Rates are over the steps since the last line was written; `padding` is the
    share of the tokens that the encoder computes and that are padding. generator: the seconds that one took since it was
    last asked; `generator_share` is their share of the steps' time.
    """

    def __init__(
        self,
        ranks: Ranks,
        folder: RunFolder,
        sources: Mapping[str, FeatureSet],
        micro: int,
        padding: Padding,
        forwards: Forwards | None = None,
        generator: Callable[[], float] | None = None,
    ):
        self.ranks, self.folder, self.sources = ranks, folder, sources
        self.micro, self.padding, self.forwards, self.generator = micro, padding, forwards, generator
        self.records: list[StepRecord] = []
        self.since = time.perf_counter()

    def begin(self, step: int, lr: float) -> StepRecord:
        """Opens the record of a step."""
        if not self.records:
            self.since = time.perf_counter()
        if self.forwards:
            self.forwards.take()  # an evaluation's
        self.records.append(StepRecord(step, lr, forwards=self.forwards))
        return self.records[-1]

    def flush(self) -> str:
        """Writes the open records; the newest loss and rates in a few words for the progress bar."""
        records, self.records = self.records, []
        if not records:
            return ""
        own = torch.stack([torch.stack(record.losses) for record in records])  # [steps, micro-batches]
        losses = (self.ranks.sum(own) / self.ranks.world_size).double().cpu().numpy()
        names, parts = self._parts(records)
        seconds = (time.perf_counter() - self.since) / len(records)
        if not np.isfinite(losses).all():
            self._name_bad_rows(records, own)
        lines = [
            self._line(record, row, names, part, seconds)
            for record, row, part in zip(records, losses, parts, strict=True)
        ]
        said = ""
        if self.generator is not None:
            share = self.generator() / (seconds * len(records))
            lines = [{**line, "generator_share": round(share, 4)} for line in lines]
            said = f", generator {share:.0%} of the time"
        self.folder.record(*lines)
        last = lines[-1]
        return f"loss {last['loss']:.3f}, {last['examples_per_second']:.0f} examples/s, padding {last['padding']:.0%}{said}"

    def _parts(self, records: list[StepRecord]) -> tuple[list[str], np.ndarray]:
        """The parts of each micro-batch's loss over all ranks: their names, and [steps, micro-batches, parts], NaN for none."""
        names = list(dict.fromkeys(name for record in records for parts in record.parts for name in parts))
        shape = (len(records), len(records[0].losses), len(names))
        if not names:
            return names, np.zeros(shape)
        missing = torch.full((), float("nan"), device=records[0].losses[0].device)
        flat = [parts.get(name, missing).float() for record in records for parts in record.parts for name in names]
        return names, (self.ranks.sum(torch.stack(flat)) / self.ranks.world_size).double().cpu().numpy().reshape(shape)

    def _line(
        self, record: StepRecord, losses: np.ndarray, part_names: list[str], parts: np.ndarray, seconds: float
    ) -> dict[str, Any]:
        by_pass = losses.reshape(len(record.drawn), -1).mean(axis=1)
        parts_by_pass = parts.reshape(len(record.drawn), -1, len(part_names)).mean(axis=1) if part_names else parts
        names = [drawn.dataset for drawn in record.drawn]

        def mean(values: np.ndarray, name: str) -> float:
            return float(np.mean([value for value, other in zip(values, names, strict=True) if other == name]))

        tokens, computed = self._tokens(record.drawn)
        rows = sum(len(drawn.rows) for drawn in record.drawn)
        norm = record.gradient_norm
        return {
            "step": record.step + 1,
            "loss": float(by_pass.mean()),
            "lr": record.lr,
            "grad_norm": None if norm is None else float(norm),
            "applied": record.applied,
            "datasets": names,
            **{name: record.rows[name] * self.ranks.world_size for name in COUNTED if record.rows[name]},
            "examples_per_second": round(rows / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "padding": round(1 - tokens / computed, 4),
            **{f"loss/{name}": mean(by_pass, name) for name in dict.fromkeys(names)},
            **{
                f"{part}/{name}": value
                for i, part in enumerate(part_names)
                for name in dict.fromkeys(names)
                if not np.isnan(value := mean(parts_by_pass[:, i], name))
            },
            **record.cosines,
            **{name: float(value) for name, value in record.beside.items()},
        }

    def _tokens(self, drawn: list[Pass]) -> tuple[int, int]:
        """Real and computed tokens of a step over all ranks, which follow from the plan alone."""
        real = computed = 0
        for taken in drawn:
            source = self.sources[taken.dataset]
            pieces = taken.rows.reshape(-1, self.micro, self.ranks.world_size).swapaxes(1, 2).reshape(-1, self.micro)
            lengths = np.asarray(source.lengths)[pieces]
            real += int(lengths.sum())
            several = getattr(source, "sequences", None)
            several = None if several is None else np.asarray(several)[pieces]
            computed += self.padding.computed(taken.dataset, lengths, several)
        return real, computed

    def _name_bad_rows(self, records: list[StepRecord], own: torch.Tensor) -> None:
        found = []
        for record, losses in zip(records, own.cpu(), strict=True):
            pieces = [
                (taken.dataset, rows)
                for taken in record.drawn
                for rows in micro_batches(taken.rows, self.micro, self.ranks.rank, self.ranks.world_size)
            ]
            for (name, rows), loss in zip(pieces, losses.view(len(pieces), -1).sum(1), strict=True):
                if not loss.isfinite():
                    source = self.sources[name]
                    ids = sorted({source.example(source[row].example).id for row in rows})
                    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
                    found.append(f"step {record.step + 1}: the loss of {name} is {float(loss)} on rows {shown}")
        for message in found[:5]:
            warn(message, everywhere=True)
