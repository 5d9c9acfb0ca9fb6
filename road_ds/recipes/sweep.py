"""Sweeps: one JSON file = a search over settings of a run. A trial is a stage of a recipe, with values of its own.

{"trial": {"config": "mine.json", "set": {"road.steps": 500}}, "trials": 20,
 "search": {"optimizer.params.lr": {"low": 1e-5, "high": 1e-3, "log": true}, "road.passes": [1, 2, 4]}}
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from road_ds.common.errors import Faults, RoadError, nearest
from road_ds.common.strict_json import load_json, quote
from road_ds.config.file import override
from road_ds.config.road import RoadConfig
from road_ds.config.settings import Count, Number, Strict, validated
from road_ds.data.sources import Source
from road_ds.recipes.recipe import Recipe, Run, Stage, plan
from road_ds.recipes.stages import settings_of
from road_ds.tasks.registry import heads

Values = dict[str, Any]  # by key


class Range(Strict):
    """Numbers from `low` to `high`, both among them: whole ones where both are written so. log: drawn by their logarithm."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @model_validator(mode="after")
    def holds_numbers(self):
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g}, high {self.high:g}: an empty range: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g}: a log range must be above 0")
        if self.step is not None and (self.log or not 0 < self.step <= self.high - self.low):
            raise ValueError(f"step {self.step:g}: expected at most high - low, and no log beside it")
        if self.whole and not isinstance(self.step or 1, int):
            raise ValueError(f"step {self.step:g}: low and high are whole numbers: write {float(self.low)} for others")
        return self

    @property
    def whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def __str__(self) -> str:
        said = "whole numbers" if self.whole else "numbers"
        more = ", by their logarithm" if self.log else f", in steps of {self.step:g}" if self.step else ""
        return f"{said} from {self.low:g} to {self.high:g}{more}"


Among = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Field(min_length=1), Tag("choices")],
    Discriminator(lambda given: "choices" if isinstance(given, list) else "range"),
]


class Prune(Strict):
    """When a trial is stopped early: at an evaluation after `steps`, once `trials` have finished, where its best score so far
    is below the median of theirs at that step."""

    trials: Number = 5
    steps: Number = 0


class Sweep(Strict):
    """A sweep's file. stages: made once, before the trials; dataset: whose headline metric is the score, by default the
    mean of all; trials: how many, those of earlier starts included."""

    about: str = ""
    stages: dict[str, Stage] = {}
    trial: Stage
    search: Annotated[dict[str, Among], Field(min_length=1)]
    trials: Count
    seed: Number = 0
    dataset: str | None = None
    prune: Prune | None = None

    @field_validator("search")
    @classmethod
    def keys_stand_apart(cls, search: dict[str, Among]) -> dict[str, Among]:
        for key, others in search.items():
            if not all(key.split(".")) or key == "road.output":
                raise ValueError(
                    f"{quote(key)}: expected the key of a setting, such as road.passes, but not road.output"
                )
            if isinstance(others, list) and any(a == b for a, b in itertools.combinations(map(quote, others), 2)):
                raise ValueError(f"{key}: got {quote(others)}; expected different values")
        for one, other in itertools.permutations(search, 2):
            if holds(one, other):
                raise ValueError(f"{one} holds {other}: search one of them")
        return search

    @model_validator(mode="after")
    def settings_stay_apart(self):
        if self.trial.evaluate:
            raise ValueError("trial.evaluate: a trial trains: leave it out")
        for key, fixed in itertools.product(self.search, self.trial.set):
            if holds(key, fixed):
                raise ValueError(f"search.{key}: trial.set gives {fixed} a value: leave one out")
        return self

    def first_values(self) -> Values:
        """A value of each range and list, the first."""
        return {key: edges(among)[0] for key, among in self.search.items()}


def holds(one: str, other: str) -> bool:
    """Whether a dotted key is another, or a block that holds it."""
    return f"{other}.".startswith(f"{one}.")


def edges(among: Among) -> list[Any]:
    """What is looked at before anything runs: both ends of a range, every choice."""
    return [among.low, among.high] if isinstance(among, Range) else list(among)


def load_sweep(path: Path) -> Sweep:
    """The sweep in a file. RoadError that names file and key for anything that does not hold."""
    return validated(Sweep, load_json(path), str(path))


def runs_of(
    sweep: Sweep, path: Path, output: Path, name: str, values: Mapping[str, Any], extra: Mapping[str, Any]
) -> list[Run]:
    """The runs of a trial, behind those of the stages before it. RoadError as `plan` gives it."""
    trial = sweep.trial.model_copy(update={"set": {**sweep.trial.set, **values}})
    return plan(Recipe(stages={**sweep.stages, name: trial}), path, output, extra)


def own(runs: Sequence[Run], name: str) -> list[Run]:
    """Those of them that are the trial's."""
    return [run for run in runs if run.stage == name]


def refuse_unfit(sweep: Sweep, path: Path, output: Path, extra: Mapping[str, Any]) -> None:
    """RoadError with all that is wrong with what is searched: keys that are not there, values that a run does not take."""
    for key, given in itertools.product(sweep.search, extra):
        if holds(key, given) or holds(given, key):
            raise RoadError(f"--set {given}: {path} searches {key}: leave one out")
    found = own(runs_of(sweep, path, output, "trial", {}, extra), "trial")[0]
    data = raw(found)
    faults = Faults()
    for key in sweep.search:
        if (parent := missing_parent(data, key)) is not None:
            faults.add(f"{path}: search.{key}: {found.config} has no {parent}: add it there, or to trial.set")
    faults.end()
    first = sweep.first_values()
    tried = [(key, value) for key, among in sweep.search.items() for value in edges(among)]
    wrong: dict[str, list[str]] = {}  # what is said, of which values
    for key, value in tried:
        with faults.caught():
            run = own(runs_of(sweep, path, output, "trial", {**first, key: value}, extra), "trial")[0]
            try:
                config, _ = settings_of(run)
            except RoadError as error:
                for line in str(error).split("\n"):
                    wrong.setdefault(line, []).append(f"search.{key}: {quote(value)}")
    for line, values in wrong.items():
        if len(values) == len(tried) > 1:  # whatever is searched: the file's own
            faults.add(line)
        else:
            for value in values:
                faults.add(f"{path}: {value}: {line}")
    faults.end()
    scored = [name for name, spec in config.datasets.items() if spec.dev is not None]
    if sweep.dataset is not None and sweep.dataset not in scored:
        raise RoadError(
            f"{path}: dataset: got {quote(sweep.dataset)}{nearest(sweep.dataset, scored)}; {run.config} scores "
            f"{', '.join(scored) or 'nothing'}"
        )
    if not scored:
        raise RoadError(f"{path}: {run.config}: no data set has a dev part: there is no score to search by")
    if sweep.prune is not None and not config.evaluate_every:
        raise RoadError(f"{path}: prune: {run.config} scores nothing before its end: set road.evaluate_every")


def raw(run: Run) -> Any:
    """A run's file with its settings, as it would be written."""
    data = load_json(run.config)
    for assignment in run.overrides:
        override(data, assignment)
    return data


def missing_parent(data: Any, key: str) -> str | None:
    """The first block on the way to a key that is not there."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        data = data.get(parts[length - 1])
        if not isinstance(data, dict):
            return ".".join(parts[:length])
    return None


def headlines(dataset: str, config: RoadConfig) -> list[str]:
    """What a data set's headline metric may be called in metrics.jsonl: its own, else its task's."""
    own = Source.of(dataset, "dev", config.datasets[dataset]).metric
    return [f"{dataset}/{metric}" for metric in (own, heads(config).task(dataset).headline) if metric is not None]
