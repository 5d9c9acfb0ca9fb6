"""The best evaluation of a run: its weights, scores and rows, kept in the run folder until a better one comes."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from road_ds.checkpoint import commit, committed, prune
from road_ds.errors import RoadError
from road_ds.evaluation import Evaluated, mean_headline
from road_ds.export import full_state
from road_ds.log import warn
from road_ds.ranks import Ranks


class Best:
    """The folder `best` of a run. It holds `step-N`, written in one move, where N is the best evaluation's step.

    A resumed run does some steps again; an evaluation that only equals the one kept does not replace it.
    """

    def __init__(self, root: Path):
        self.root = root

    def offer(self, engine: Any, ranks: Ranks, step: int, results: Mapping[str, Evaluated]) -> None:
        """Keeps the weights as they are now when the mean headline is above the one kept. On all ranks together.

        `results` is empty on ranks other than 0. A full disk is a warning: the earlier best then stays.
        """
        better = bool(results) and mean_headline(results) > self._kept_score()
        if not ranks.any(better):
            return
        state = full_state(engine)
        if ranks.rank == 0:
            try:
                self._keep(step, results, state)
            except (OSError, SafetensorError) as error:
                warn(f"step {step}: its weights could not be kept as the best: {error}")

    def _kept_score(self) -> float:
        folders = committed(self.root)
        return json.loads((folders[0] / "score.json").read_text())["mean_headline"] if folders else float("-inf")

    def _keep(self, step: int, results: Mapping[str, Evaluated], state: Mapping[str, torch.Tensor]) -> None:
        staged = self.root / ".staged"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save_file({key: value.contiguous() for key, value in state.items()}, staged / "weights.safetensors")
        (staged / "score.json").write_text(json.dumps({"step": step, "mean_headline": mean_headline(results)}))
        (staged / "results.json").write_text(json.dumps({name: vars(result) for name, result in results.items()}))
        commit(staged, self.root / f"step-{step:08d}")
        prune(self.root, 1)

    def load(self) -> tuple[int, dict[str, Evaluated], dict[str, torch.Tensor]]:
        """Step, scores and weights of the best evaluation. RoadError when nothing whole is there."""
        folders = committed(self.root)
        try:
            step = json.loads((folders[0] / "score.json").read_text())["step"]
            results = json.loads((folders[0] / "results.json").read_text(encoding="utf-8"))
            state = load_file(folders[0] / "weights.safetensors")
        except (IndexError, OSError, ValueError, KeyError, SafetensorError) as error:
            raise RoadError(
                f"{self.root}: the best evaluation's weights cannot be read ({error or type(error).__name__}): "
                "take the last ones with python -m road_ds export"
            ) from None
        return step, {name: Evaluated(**result) for name, result in results.items()}, state
