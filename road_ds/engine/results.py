"""What a run leaves: models, scores, predictions, curves, and the lines that say where they are."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from road_ds.common.log import say
from road_ds.data.features import FeatureSet
from road_ds.data.rows import Rows
from road_ds.engine.curves import plot_curves
from road_ds.engine.forwards import COUNTED
from road_ds.engine.report import write_report
from road_ds.engine.run_folder import RunFolder, full_disk_named
from road_ds.engine.selection import Best
from road_ds.models.card import Card
from road_ds.models.export import export
from road_ds.models.multi_task import MultiTaskModel, parameter_count
from road_ds.tasks.evaluation import Evaluated, report, write_results
from road_ds.tasks.registry import Heads


@dataclass(frozen=True)
class Outcome:
    """Where a run has ended: its last step, the scores and weights there, and the best kept, if the run chooses that."""

    step: int
    scores: Mapping[str, Evaluated]
    state: Mapping[str, torch.Tensor]
    best: Best | None

    def chosen(self) -> tuple[int, Mapping[str, Evaluated], Mapping[str, torch.Tensor]]:
        """Step, scores and weights of what is exported."""
        if self.best is None:
            return self.step, self.scores, self.state
        found = self.best.load()
        say(f"exporting step {found[0]} of {self.step}: its mean headline metric is the highest")
        return found


def leave(
    folder: RunFolder, outcome: Outcome, model: MultiTaskModel, tokenizer: Any, facts: Mapping[str, Any], began: float,
    card: Card, shared: bool, given: Mapping[str, Any], rows: Rows, heads: Heads,
) -> tuple[list[Path], str]:  # fmt: skip
    """Writes a run's results, exported heads and pages; the heads' folders, and the scores as a table. On rank 0.

    facts: what else results.json holds; began: when the run did, by time.monotonic(); shared: the heads share an encoder's
    folder; given: the run's settings, for the report.
    """
    with full_disk_named(folder.path):
        step, scores, state = outcome.chosen()
        folder.refuse_lost()
        exported = export(model, state, tokenizer, folder.path / "model", card.scored(scores), shared)
        headlines = {name: f"{name}/{result.headline}" for name, result in scores.items()}
        best = {name: highest(folder, metric) for name, metric in headlines.items()}
        seconds = round(time.monotonic() - began, 1)
        known = {"step": outcome.step, "exported_step": step, "best": best, "wall_seconds": seconds}
        known |= {"parameters": parameter_count(model.encoder) + parameter_count(model.heads), **rows_read(folder)}
        folder.refuse_lost()
        write_results(folder.path, scores, {**known, **facts})
        drawn = {name: result.headline for name, result in scores.items()}
        bases = {name: r.baseline[r.headline] for name, r in scores.items() if r.headline in r.baseline}
        plot_curves(folder.records(), heads.of, drawn, bases, folder.path / "curves.png")
        write_report(folder.path, {**known, **facts}, folder.records(), scores, given, rows, heads)
        return exported, report(scores)


def rows_read(folder: RunFolder) -> dict[str, int]:
    """The rows that student and teachers read in all steps of a run, by COUNTED."""
    lines = list(folder.records())
    return {name: sum(line.get(name, 0) for line in lines) for name in COUNTED}


def highest(folder: RunFolder, metric: str) -> dict[str, Any]:
    """The highest value of a metric over a run's evaluations, and its step; None where it was never finite."""
    values = [(line[metric], line["step"]) for line in folder.records() if line.get(metric) is not None]
    value, step = max(values, key=lambda pair: pair[0], default=(None, None))
    return {"metric": metric, "value": value, "step": step}


def closing(folder: Path, exported: list[Path], sources: Mapping[str, FeatureSet], seconds: float) -> list[str]:
    """The last lines of a run: where things are, and a prediction to try next. sources: rows by the head they train."""
    source = sources[exported[0].name]
    # one of the first rows, of about a line
    example = min(islice(source.examples(), 1000), key=lambda e: abs(80 - len(e.text_a + (e.text_b or ""))))
    texts = ["--text", example.text_a, *(["--pair", example.text_b] if example.text_b is not None else [])]
    asked = shlex.join(texts) if example.choices is None else "--file FILE"
    return [
        f"{seconds:.0f} s. All on one page: {folder / 'report.html'}; results: {folder / 'results.json'}",
        "Models: " + ", ".join(map(str, exported)),
        f"Next: python -m road_ds predict {exported[0]} {asked}",
    ]
