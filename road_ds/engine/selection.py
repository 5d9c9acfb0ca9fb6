"""The best evaluation of a run: its weights, scores and rows, kept in the run folder until a better one comes."""

import json
import shutil
from collections.abc import Mapping
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
