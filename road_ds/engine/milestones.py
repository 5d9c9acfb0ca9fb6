"""What a run does between its steps: dev scores, the best weights, checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from road_ds.common.errors import RoadError
from road_ds.common.log import counted, say, warn
from road_ds.common.ranks import Ranks
from road_ds.data.features import FeatureSet
from road_ds.engine import checkpoint
from road_ds.engine.run_folder import RunFolder
from road_ds.engine.selection import MEAN, Best, Patience
from road_ds.tasks.evaluation import Evaluated, evaluate, flat, mean_headline
from road_ds.tasks.registry import Heads


@dataclass
class Milestones:
    """dev: the rows to score, by data set; batch_size: rows a process evaluates at once; saved: the settings and rows that
    a checkpoint is of; keep: how many checkpoints stay; best: where the best evaluation is kept, None where none is; patience: when
    enough have been seen; beside: other engines of the run, saved with the first; latest: the evaluation made last, and its step."""

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
    patience: Patience = field(default_factory=lambda: Patience(None))
    beside: checkpoint.Engines = field(default_factory=dict)
    latest: tuple[int, dict[str, Evaluated]] = (-1, {})

    def look(self, step: int) -> bool:
        """Evaluates after a step, and says so in a line; whether the run ends there. The same on all ranks."""
        scores = self.evaluate(step)
        if scores:
            say(f"step {step:,}: {in_words(scores)}{self._standing(step)}")
        over = self.ranks.any(self.patience.is_over)
        if over and self.patience.limit:
            since = counted(self.patience.limit, "evaluation")
            say(f"the run ends here: {since} in a row no better than the best before (road.patience)")
        return over

    def gone_on(self, step: int, steps: int, every: int, *, extended: bool) -> int:
        """The last step of a run of so many that is gone on with after `step`: that one where its patience has come to an end.

        An evaluation that was due when the run was stopped is made; the last one is made again. RoadError where nothing is
        left to extend.
        """
        due = bool(every) and step % every == 0 and step < steps
        missed = due and self.ranks.any(self.ranks.rank == 0 and step not in self.patience.means)
        over = self.look(step) if missed else self.ranks.any(self.patience.is_over)
        if over and extended:
            raise RoadError(
                f"{self.folder.path}: ended after {step:,} steps because road.patience is {self.patience.limit}: "
                "extend it with a larger one, or null"
            )
        if not over and step < steps:
            return steps
        if not missed:
            self.ranks.apart(lambda: self.folder.forget(lambda line: line["step"] == step and "loss" not in line))
        return step

    def _standing(self, step: int) -> str:
        means, best = self.patience.means, self.patience.best
        mean = f"; mean {means[step]:.2f}" if len(self.dev) > 1 else ""
        return mean + (", the best so far" if best == step else f" (best {means[best]:.2f} after step {best:,})")

    def evaluate(self, step: int) -> dict[str, Evaluated]:
        """The dev scores after a step, recorded, on rank 0; empty elsewhere. The weights are kept where they are the best."""
        if self.latest[0] == step:
            return self.latest[1]
        heads = {name: (self.heads.of[name], self.heads.task(name)) for name in self.dev}
        scores = evaluate(self.engine, self.dev, heads, self.ranks, pad_id=self.pad_id, batch_size=self.batch_size)
        if scores:
            mean = mean_headline(scores)
            self.folder.record({"step": step, **flat(scores), MEAN: mean})
            self.patience.see(step, mean)
        if self.best is not None:
            self.ranks.apart(self.folder.refuse_lost)
            self.best.offer(self.engine, self.ranks, step, scores)
        self.latest = (step, scores)
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


def in_words(scores: Mapping[str, Evaluated]) -> str:
    """The headline metric of each data set, in a line."""
    return ", ".join(
        f"{name} {result.headline} {result.scores[result.headline]:.1f}" for name, result in scores.items()
    )
