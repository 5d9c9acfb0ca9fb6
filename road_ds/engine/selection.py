"""The best evaluation of a run: its weights, scores and rows, kept until a better one comes; and how long that is waited for."""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from road_ds.common.errors import RoadError
from road_ds.common.log import warn
from road_ds.common.ranks import Ranks
from road_ds.common.sealed import MANIFEST, Damaged, Manifest, commit, read_manifest, seal, verify
from road_ds.engine.checkpoint import committed, prune
from road_ds.engine.weights import full_state
from road_ds.tasks.evaluation import Evaluated, mean_headline

MEAN = "mean_headline"  # in the lines of metrics.jsonl that are evaluations


@dataclass
class Patience:
    """How many evaluations in a row may be no better than the best before; None: any number.

    means: the mean headline metric of each evaluation so far, by step. One that is not finite is the worst.
    """

    limit: int | None
    means: dict[int, float] = field(default_factory=dict)

    @classmethod
    def after(cls, limit: int | None, records: Iterable[Mapping[str, Any]], step: int) -> "Patience":
        """What is left of it after a step of a run that is gone on with; records: its lines of metrics.jsonl."""
        found = cls(limit)
        for line in records:
            if MEAN in line and line["step"] <= step:
                found.see(line["step"], math.nan if line[MEAN] is None else line[MEAN])
        return found

    def see(self, step: int, mean: float) -> None:
        """Takes in an evaluation."""
        self.means[step] = mean if math.isfinite(mean) else -math.inf

    @property
    def best(self) -> int:
        """The step of the best evaluation, of equals the first."""
        return max(self.means, key=lambda step: (self.means[step], -step))

    @property
    def is_over(self) -> bool:
        """Whether so many evaluations have brought nothing."""
        return bool(self.limit and self.means) and sum(step > self.best for step in self.means) >= (self.limit or 0)


class Kept(Manifest):
    """What the best evaluation's folder says of itself."""

    run: str  # the id of the run that wrote it
    step: int
    mean_headline: float


class Best:
    """The folder `best` of a run. It holds `step-N`, written in one move, where N is the best evaluation's step.

    A resumed run does some steps again; an evaluation that only equals the one kept does not replace it.
    """

    def __init__(self, root: Path, run: str):
        self.root = root
        self.run = run  # the run's id

    def offer(self, engine: Any, ranks: Ranks, step: int, results: Mapping[str, Evaluated]) -> None:
        """Keeps the weights as they are now when the mean headline is above the one kept. On all ranks together.

        `results` is empty on ranks other than 0. A full disk is a warning: the earlier best then stays.
        """
        better = bool(results) and mean_headline(results) > self._kept_score()
        if not ranks.any(better):
            return
        state = full_state(engine)
        if ranks.rank == 0:
            staged = self.root / ".staged"
            try:
                self._keep(staged, step, results, state)
            except (OSError, SafetensorError) as error:
                shutil.rmtree(staged, ignore_errors=True)
                warn(f"step {step}: its weights could not be kept as the best: {error}")

    def _kept_score(self) -> float:
        for folder in committed(self.root):
            try:
                return read_manifest(folder / MANIFEST, Kept).mean_headline
            except Damaged as error:
                warn(f"the best evaluation so far is lost ({error}): the next counts as the best")
        return float("-inf")

    def _keep(
        self, staged: Path, step: int, results: Mapping[str, Evaluated], state: Mapping[str, torch.Tensor]
    ) -> None:
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in state.items()}, staged / "weights.safetensors")
        (staged / "results.json").write_text(json.dumps({name: vars(result) for name, result in results.items()}))
        seal(staged, Kept, {"run": self.run, "step": step, "mean_headline": mean_headline(results)})
        commit(staged, self.root / f"step-{step:08d}")
        prune(self.root, 1)

    def load(self) -> tuple[int, dict[str, Evaluated], dict[str, torch.Tensor]]:
        """Step, scores and weights of the best evaluation. RoadError when nothing whole of this run is there."""
        try:
            folder = next(iter(committed(self.root)), None)
            if folder is None:
                raise Damaged("no evaluation was kept")
            kept = verify(folder, Kept)
            if kept.run != self.run:
                raise Damaged(f"{folder}: is of another run ({kept.run})")
            results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
            state = load_file(folder / "weights.safetensors")
        except (Damaged, OSError, ValueError, SafetensorError) as error:
            raise RoadError(
                f"{self.root}: the best evaluation's weights cannot be read ({error}): take the last ones with "
                "python -m road_ds export"
            ) from None
        return kept.step, {name: Evaluated(**result) for name, result in results.items()}, state
