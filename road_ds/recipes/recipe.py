"""Recipes: one JSON file = runs of runs. A stage is a run, or one for each seed and data set; `{stage}` is what it needs.

{"stages": {"teacher": {"config": "single.json", "each": {"seed": [1, 2, 3]}, "set": {"road.seed": "{seed}"}},
            "student": {"config": "single.json", "set": {"road.distill.teachers.rows": ["{teacher}"], ...}}}}
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from road_ds.common.errors import RoadError, nearest
from road_ds.common.strict_json import load_json, quote
from road_ds.config.settings import NAME, Strict, validated

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
FOLDED = ("seed", "dataset")  # variables of `each` that make no row of their own in a comparison

Values = dict[str, str | int | float]


class Stage(Strict):
    """Runs that differ in nothing but what `each` lists.

    set: settings of the run's file by dotted key; each: variable -> values, a run for every combination; evaluate:
    instead of training, score these models' mean logits on the config's dev rows.
    """

    config: str
    set: dict[str, Any] = {}
    each: dict[str, Annotated[list[str | int | float], Field(min_length=1)]] = {}
    evaluate: Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def names_are_safe(self):
        for variable, values in self.each.items():
            for name in (variable, *map(str, values)):
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"each: {quote(name)} becomes part of a folder's name: only letters, digits, . _ -"
                    )
            if len(set(map(str, values))) != len(values):
                raise ValueError(f"each.{variable}: got {values}; expected different values")
        if "road.output" in self.set:
            raise ValueError(
                "set: road.output is the recipe's to choose: leave it out (--output sets where all runs lie)"
            )
        return self


class Comparison(Strict):
    """What `compare` says of the runs at the end. stages: which to compare, default all."""

    baseline: str
    stages: list[str] | None = None


class Recipe(Strict):
    """A recipe file."""

    about: str = ""
    stages: Annotated[dict[str, Stage], Field(min_length=1)]
    compare: Comparison | None = None

    @field_validator("stages")
    @classmethod
    def stages_have_names(cls, stages: dict[str, Stage]) -> dict[str, Stage]:
        for name, stage in stages.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"the name {quote(name)} may hold only letters, digits and . _ - (no dot in front)")
            if twice := sorted(stage.each.keys() & stages.keys()):
                raise ValueError(f"{name}.each: {twice[0]!r} is the name of a stage too: rename one")
        return stages


@dataclass(frozen=True)
class Run:
    """One run of a recipe: `settings` are its overrides of the file `config`, every placeholder filled in.

    needs: names of the runs that come before it; models: what is evaluated, nothing for a training.
    """

    name: str
    stage: str
    values: Values
    config: Path
    folder: Path
    settings: Mapping[str, Any]
    models: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def overrides(self) -> list[str]:
        """The settings as KEY=VALUE, the run folder among them."""
        settings = {**self.settings, "road.output": str(self.folder)}
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]

    @property
    def group(self) -> str:
        """The row of a comparison that the run belongs to: its stage, and what tells it apart but seed and data set."""
        return run_name(self.stage, {key: value for key, value in self.values.items() if key not in FOLDED})


def run_name(stage: str, values: Values) -> str:
    """The stage and the values of `each`, joined by dashes."""
    return "-".join([stage, *map(str, values.values())])


def load_recipe(path: Path) -> Recipe:
    """The recipe in a file. RoadError that names file and key for anything that does not hold."""
    recipe = validated(Recipe, load_json(path), str(path))
    if recipe.compare:
        for name in recipe.compare.stages or ():
            if name not in recipe.stages:
                raise RoadError(
                    f"{path}: compare.stages: there is no stage {quote(name)}{nearest(name, recipe.stages)}"
                )
    return recipe


def plan(recipe: Recipe, path: Path, output: Path, extra: Mapping[str, Any] | None = None) -> list[Run]:
    """The runs of a recipe, each behind those it needs; `extra` settings go on top of every stage's.

    RoadError for an unknown placeholder, a reference to several runs where one is meant, and a circle.
    """
    every = {name: [*_combinations(stage.each)] for name, stage in recipe.stages.items()}
    folders: dict[str, Path] = {}
    for name, combinations in every.items():
        for values in combinations:
            run = run_name(name, values)
            if run in folders:
                raise RoadError(f"{path}: two runs are called {run!r}: rename a stage")
            folders[run] = output / run
    runs = {}
    for name, stage in recipe.stages.items():
        for values in every[name]:
            words = Words(f"{path}: stages.{name}", values, every, folders)
            settings = words.fill(stage.set)
            run = run_name(name, values)
            runs[run] = Run(
                name=run,
                stage=name,
                values=values,
                config=path.parent / stage.config,
                folder=folders[run],
                settings={**settings, **(extra or {})},
                models=tuple(words.fill(stage.evaluate or [])),
                needs=tuple(words.needs),
            )
    return list(_in_order(runs, path))


def _combinations(each: Mapping[str, list]) -> Iterator[Values]:
    for values in itertools.product(*each.values()):
        yield dict(zip(each, values, strict=True))


@dataclass
class Words:
    """What placeholders mean inside one run, and which other runs they have named so far.

    `{variable}` is a value of its own `each`. `{stage}` is the folder of the stage's run that has the same values in the
    variables that both have; where several have, it stands for all of them, which is possible only inside a list.
    `{run}` is one run by its full name.
    """

    where: str
    values: Values
    every: Mapping[str, list[Values]]
    folders: Mapping[str, Path]
    needs: dict[str, None] = field(default_factory=dict)  # an ordered set

    def fill(self, value: Any) -> Any:
        """A value with every placeholder in it replaced, in keys too. A text that is one placeholder keeps its type."""
        if isinstance(value, dict):
            return {str(self.one(key)): self.fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled for inner in value for filled in self._items(inner)]
        return self.one(value) if isinstance(value, str) else value

    def _items(self, value: Any) -> list[Any]:
        return self.meanings(value) if isinstance(value, str) else [self.fill(value)]

    def one(self, text: str) -> Any:
        """What a text stands for. RoadError when that is several runs."""
        found = self.meanings(text)
        if len(found) > 1:
            raise RoadError(
                f"{self.where}: {quote(text)} stands for {len(found)} runs ({', '.join(map(str, found))}): give it inside a "
                "list, or name one run"
            )
        return found[0]

    def meanings(self, text: str) -> list[Any]:
        """All that a text stands for: one value, or one for each run of a stage that it names."""
        if whole := PLACEHOLDER.fullmatch(text):
            return self._word(whole[1])
        found = [""]
        at = 0
        for match in PLACEHOLDER.finditer(text):
            between, words = text[at : match.start()], self._word(match[1])
            found = [f"{before}{between}{word}" for before in found for word in words]
            at = match.end()
        return [before + text[at:] for before in found]

    def _word(self, word: str) -> list[Any]:
        if word in self.values:
            return [self.values[word]]
        if word in self.every:
            names = [run_name(word, other) for other in self.every[word] if self._agrees(other)]
            if not names:
                raise RoadError(
                    f"{self.where}: {{{word}}} has no run with {', '.join(f'{k} {v}' for k, v in self.values.items())}; it has "
                    + ", ".join(run_name(word, other) for other in self.every[word])
                )
        elif word in self.folders:
            names = [word]
        else:
            known = [*self.values, *self.every, *self.folders]
            raise RoadError(
                f"{self.where}: {{{word}}} is no variable of `each`, no stage and no run{nearest(word, known)}; "
                f"known: {', '.join(dict.fromkeys(known))}"
            )
        self.needs.update(dict.fromkeys(names))
        return [str(self.folders[name]) for name in names]

    def _agrees(self, other: Values) -> bool:
        return all(self.values[key] == value for key, value in other.items() if key in self.values)


def _in_order(runs: Mapping[str, Run], path: Path) -> Iterator[Run]:
    """The runs, each behind those it needs, otherwise as in the file."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> Iterator[Run]:
        if name in way:
            circle = " -> ".join([*way[way.index(name) :], name])
            raise RoadError(f"{path}: runs need each other in a circle: {circle}: take one of the references out")
        if name not in done:
            for needed in runs[name].needs:
                yield from visit(needed, (*way, name))
            done.add(name)
            yield runs[name]

    for name in runs:
        yield from visit(name, ())


def chosen(words: list[str], runs: list[Run], option: str) -> set[str]:
    """The names of the runs that stage and run names mean. RoadError for an unknown one."""
    found: set[str] = set()
    for word in words:
        names = {run.name for run in runs if word in (run.name, run.stage)}
        if not names:
            known = dict.fromkeys(word for run in runs for word in (run.stage, run.name))
            raise RoadError(
                f"{option} {word}: no such stage or run{nearest(word, known)}; there are {', '.join(known)}"
            )
        found |= names
    return found


def with_dependents(names: set[str], runs: list[Run]) -> set[str]:
    """The given runs and all that need them, directly or not; `runs` in order."""
    found = set(names)
    for run in runs:
        if found & set(run.needs):
            found.add(run.name)
    return found
