"""Runs side by side: groups of seeds, their scores on each data set, and how sure a difference is."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.common.errors import RoadError, nearest
from road_ds.common.log import table
from road_ds.common.strict_json import flat_keys, load_json, quote
from road_ds.engine.run_folder import RunFolder
from road_ds.recipes.difference import difference


@dataclass(frozen=True)
class Finished:
    """A finished run, or an evaluated ensemble: its folder and results.json."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Finished":
        """The run in a folder. RoadError when it has not finished."""
        if not (folder / "results.json").exists():
            raise RoadError(
                f"{folder}: has no results.json: expected a finished run, or what `evaluate --output` wrote"
            )
        return cls(folder, load_json(folder / "results.json"))

    @property
    def seed(self) -> int | None:
        """The run's seed; None for an ensemble."""
        return self.results.get("seed")

    def score(self, dataset: str) -> float:
        """The headline metric on a data set."""
        result = self.results["scores"][dataset]
        return result["scores"][result["headline"]]

    def rows_sha256(self, dataset: str) -> str | None:
        """Which rows were scored; None where an earlier version did."""
        return self.results["scores"][dataset].get("rows_sha256")

    def rows(self, dataset: str) -> dict[str, float]:
        """The score of each row by id. RoadError when the file is missing or an id stands there twice."""
        path = self.folder / "predictions" / f"{dataset}.jsonl"
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            scores = {line["id"]: float(line["score"]) for line in lines}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RoadError(
                f"{path}: cannot be read as predictions ({error}): train or evaluate the run again"
            ) from None
        if len(scores) != len(lines):
            raise RoadError(f"{path}: an id stands there more than once: rows cannot be matched")
        return scores

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, none for an ensemble."""
        return RunFolder(self.folder).records()

    def settings(self) -> dict[str, Any]:
        """The settings that it was made with, by dotted key, but for where it lies and its seed; none for an ensemble."""
        path = self.folder / "config.json"
        found = flat_keys(load_json(path)) if path.exists() else {}
        return {key: value for key, value in found.items() if key not in ("road.output", "road.cache", "road.seed")}


Groups = dict[str, list[Finished]]


def grouped(words: Sequence[str]) -> Groups:
    """Runs by group: `NAME=FOLDER`, or FOLDER, whose group is its name without the run's own seed at the end."""
    groups: Groups = {}
    for word in words:
        name, equals, folder = word.partition("=")
        named = bool(equals) and not Path(word).exists()
        run = Finished.open(Path(folder if named else word))
        groups.setdefault(name if named else without_seed(run), []).append(run)
    return groups


def without_seed(run: Finished) -> str:
    """The folder's name less `-SEED` at its end, where that is the run's seed."""
    name = run.folder.resolve().name
    return re.sub(rf"[-_.](seed[-_]?|s)?{run.seed}$", "", name) or name


def compare(groups: Groups, baseline: str | None = None) -> dict[str, Any]:
    """What is to be said of groups of runs, as plain values: per data set and group mean, spread, seeds, difference.

    RoadError when groups were scored by different metrics or on different rows, or a seed is there twice.
    """
    if baseline is not None and baseline not in groups:
        raise RoadError(
            f"--baseline {baseline}: no such group{nearest(baseline, groups)}; there are {', '.join(groups)}"
        )
    names = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.results["scores"])
    return {
        "baseline": baseline,
        "data_sets": {name: compare_on(name, groups, baseline) for name in names},
        "costs": {name: costs(runs) for name, runs in groups.items()},
        "settings": differing(groups),
    }


def differing(groups: Groups) -> dict[str, dict[str, list[Any]]]:
    """The settings that are not the same in all runs: by key and group the values, each once, None where a run has none."""
    found = {name: [settings for run in runs if (settings := run.settings())] for name, runs in groups.items()}
    every = [settings for of in found.values() for settings in of]
    keys = dict.fromkeys(key for settings in every for key in settings)
    return {
        key: {name: distinct([settings.get(key) for settings in of]) for name, of in found.items()}
        for key in keys
        if len(distinct([settings.get(key) for settings in every])) > 1
    }


def distinct(values: Sequence[Any]) -> list[Any]:
    """Each value once, in order."""
    return list({json.dumps(value): value for value in values}.values())


COSTS = {  # of a run: what results.json says of it -> the column's name
    "parameters": "parameters",
    "step": "steps",
    "rows_trained": "rows trained on",
    "rows_asked": "rows asked",
    "rows_of_teachers": "rows of teachers",
    "rows_of_soft_targets": "of soft targets",
    "wall_seconds": "seconds",
}


def costs(runs: Sequence[Finished]) -> dict[str, float | None]:
    """The mean of each of COSTS over runs; None where one of them does not say it."""
    found: dict[str, list[Any]] = {key: [run.results.get(key) for run in runs] for key in COSTS}
    return {key: None if None in values else float(np.mean(values)) for key, values in found.items()}


def compare_on(dataset: str, groups: Groups, baseline: str | None) -> dict[str, Any]:
    """The comparison on one data set, of the groups that were scored on it. One row alone shows no spread: no differences."""
    here = {name: [run for run in runs if dataset in run.results["scores"]] for name, runs in groups.items()}
    here = {name: runs for name, runs in here.items() if runs}
    metric, row_metric, percent = _metrics(dataset, here)
    scale = 100.0 if percent else 1.0
    found: dict[str, Any] = {}
    for name, runs in here.items():
        _check_seeds(dataset, name, runs)
        values = [run.score(dataset) for run in runs]
        found[name] = {
            "mean": float(np.mean(values)),
            "median": float(np.median(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "runs": [{"folder": str(r.folder), "seed": r.seed, "value": r.score(dataset)} for r in runs],
            "metrics": _means([r.results["scores"][dataset]["scores"] for r in runs]),
            "difference": None,
        }
    if baseline in here:
        scores = _matched(dataset, here, baseline)
        for name in here:
            if name != baseline and scores[name].shape[1] > 1:
                found[name]["difference"] = asdict(difference(scale * scores[name], scale * scores[baseline]))
    bases = (r.results["scores"][dataset].get("baseline") for runs in here.values() for r in runs)
    return {
        "metric": metric,
        "row_metric": row_metric,
        "ignoring_the_text": next(filter(None, bases), {}),  # the same in all that were scored on the same rows
        "groups": found,
    }


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric that all have."""
    return {name: float(np.mean([s[name] for s in scores])) for name in scores[0] if all(name in s for s in scores)}


def _metrics(dataset: str, groups: Groups) -> tuple[str, str, bool]:
    """Headline, metric of a row, and whether the latter is a share, whose mean is a score in percent."""
    metrics = {
        (result["headline"], result["row_metric"], result["row_metric"] in result["scores"]): str(run.folder)
        for runs in groups.values()
        for run in runs
        for result in [run.results["scores"][dataset]]
    }
    if len(metrics) > 1:
        said = ", ".join(f"{folder} by {headline}" for (headline, *_), folder in metrics.items())
        raise RoadError(f"{dataset}: was scored by different metrics: {said}")
    return next(iter(metrics))


def _check_seeds(dataset: str, name: str, runs: Sequence[Finished]) -> None:
    seeds = [run.seed for run in runs if run.seed is not None]
    folders = [run.folder.resolve() for run in runs]
    for what, values in (("seed", list(map(str, seeds))), ("folder", list(map(str, folders)))):
        if twice := [value for value in values if values.count(value) > 1]:
            raise RoadError(
                f"{dataset}: the group {name} has {what} {twice[0]} twice: give different groups as NAME=FOLDER"
            )


def _matched(dataset: str, groups: Groups, baseline: str) -> dict[str, np.ndarray]:
    """The scores of each group, [seeds, rows], rows in the order of the baseline's first run."""
    rows = {name: [run.rows(dataset) for run in runs] for name, runs in groups.items()}
    order = list(rows[baseline][0])
    for name, runs in groups.items():
        for run, scores in zip(runs, rows[name], strict=True):
            if odd := scores.keys() ^ set(order):
                raise RoadError(
                    f"{dataset}: {run.folder} was scored on {len(scores)} rows, {groups[baseline][0].folder} on "
                    f"{len(order)}; {len(odd)} ids are only in one of them, such as {quote(min(odd))}: compare on the same rows"
                )
            if run.rows_sha256(dataset) != groups[baseline][0].rows_sha256(dataset):
                raise RoadError(
                    f"{dataset}: {run.folder} and {groups[baseline][0].folder} were scored on rows that have the same ids but "
                    "other texts or labels: compare on the same rows"
                )
    return {name: np.array([[scores[id] for id in order] for scores in runs]) for name, runs in rows.items()}


HEADER = ("data set", "metric", "runs", "n", "mean", "median", "sd", "each", "difference", "95 %", "p")


def lines(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table, under HEADER."""
    found: list[tuple[str, ...]] = []
    for dataset, part in report["data_sets"].items():
        unit = "" if part["metric"] == part["row_metric"] else f" {part['row_metric']}"
        for name, group in part["groups"].items():
            difference = group["difference"]
            found.append((
                dataset,
                part["metric"],
                name,
                str(len(group["runs"])),
                f"{group['mean']:.2f}",
                f"{group['median']:.2f}",
                "-" if group["sd"] is None else f"{group['sd']:.2f}",
                " ".join(f"{run['value']:.1f}" for run in group["runs"]),
                f"{difference['value']:+.2f}{unit}" if difference else "",
                f"{difference['low']:+.2f} to {difference['high']:+.2f}" if difference else "",
                f"{difference['p']:.4f}" if difference else "",
            ))  # fmt: skip
    return found


COSTS_HEADER = ("runs", *COSTS.values())


def cost_lines(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table of costs, under COSTS_HEADER."""
    return [
        (name, *("-" if value is None else f"{value:,.0f}" for value in of.values()))
        for name, of in report["costs"].items()
    ]


def text(report: Mapping[str, Any]) -> str:
    """The comparison as tables, scores and costs, with what the numbers are below them."""
    scores, spent = table(lines(report), HEADER), table(cost_lines(report), COSTS_HEADER)
    return "\n".join([scores, "", spent, "", *notes(report)])


def notes(report: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the numbers."""
    said = [
        "sd: standard deviation over runs (n - 1); each: the runs in the order given.",
        "Costs: the mean of a run of its own, not of those it begins with or learns from. Rows trained on: read with a gradient; "
        "asked: read by the student without one; of teachers: read by teachers beside it; of soft targets: read by teachers "
        "once, before.",
    ]
    if report["baseline"] is not None:
        said.append(
            f"difference: against {report['baseline']}, on the same rows, matched by id. Interval and p: Student's t, for "
            "other rows and other seeds."
        )
        single = any(len(g["runs"]) == 1 for part in report["data_sets"].values() for g in part["groups"].values())
        if single:
            said.append("A group of one run says nothing about its other seeds: the interval leaves them out.")
    return said
