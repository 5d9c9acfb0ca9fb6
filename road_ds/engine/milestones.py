"""What a run does between its steps: dev scores, the best weights, checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from road_ds.common.log import warn
from road_ds.common.ranks import Ranks
from road_ds.data.features import FeatureSet
from road_ds.engine import checkpoint
from road_ds.engine.run_folder import RunFolder
from road_ds.engine.selection import Best
from road_ds.tasks.evaluation import Evaluated, evaluate, flat
from road_ds.tasks.registry import Heads


@dataclass
class Milestones:
    """dev: the rows to score, by data set; batch_size: rows a process evaluates at once; saved: the settings and rows that
    a checkpoint is of; keep: how many checkpoints stay; best: where the best evaluation is kept, None where none is; beside:
    other engines of the run, saved with the first."""

    engine: Any
    dev: Mapping[str, FeatureSet]
    heads: Heads
    ranks: Ranks
    folder: RunFolder
    pad_id: int
    batch_size: int
    saved: Mapping[str, Any]
    keep: int
    best: Best | None
    beside: checkpoint.Engines = field(default_factory=dict)

    def evaluate(self, step: int) -> dict[str, Evaluated]:
        """The dev scores after a step, recorded, on rank 0; empty elsewhere. The weights are kept where they are the best."""
        heads = {name: (self.heads.of[name], self.heads.task(name)) for name in self.dev}
        scores = evaluate(self.engine, self.dev, heads, self.ranks, pad_id=self.pad_id, batch_size=self.batch_size)
        if scores:
            self.folder.record({"step": step, **flat(scores)})
        if self.best is not None:
            self.ranks.apart(self.folder.refuse_lost)
            self.best.offer(self.engine, self.ranks, step, scores)
        return scores

    def save(self, step: int) -> bool:
        """Whether a checkpoint was committed after a step; a fault is a warning, older ones stay."""
        folder = self.folder
        self.ranks.apart(folder.refuse_lost)
        try:
            checkpoint.save(
                self.engine, self.ranks, folder.path / "checkpoints",
                run=folder.run, step=step, config=dict(self.saved), keep=self.keep, beside=self.beside,
            )  # fmt: skip
        except OSError as error:
            warn(f"step {step}: {error}; older checkpoints are kept")
            return False
        return True
