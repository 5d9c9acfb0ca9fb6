"""A sweep at work: trial after trial, each one or more runs, until there are as many as were asked for."""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from road_ds.common.errors import RoadError
from road_ds.common.strict_json import quote
from road_ds.engine.selection import MEAN
from road_ds.recipes.comparison import Finished
from road_ds.recipes.inputs import Inputs
from road_ds.recipes.launcher import Enough, Launcher, nobody
from road_ds.recipes.recipe import Run
from road_ds.recipes.stages import StageError, Step, carry_out, inputs_for, look
from road_ds.recipes.study import Study
from road_ds.recipes.sweep import Sweep, headlines, own, refuse_unfit, runs_of

MENDED = "set it back, or use another --output"
IN_A_ROW = 3  # trials that fail end a sweep
PAUSE = 1.0  # seconds between two looks at a run's evaluations


class Trials:
    """The trials of a sweep and where they lie. extra: settings of every run, from the command line."""

    def __init__(self, sweep: Sweep, path: Path, output: Path, extra: Mapping[str, Any]):
        """RoadError for what does not hold, before anything runs, and where the folder is another sweep's."""
        refuse_unfit(sweep, path, output, extra)
        self.sweep, self.path, self.output, self.extra = sweep, path, output, extra
        steps = look(self.runs("trial", sweep.first_values()), mended=MENDED)
        self.stages = [step for step in steps if step.run.stage != "trial"]
        self.study = Study(output, sweep, identity(sweep, steps))

    def runs(self, name: str, values: Mapping[str, Any]) -> list[Run]:
        """The runs of a trial, behind those of the stages before it."""
        return runs_of(self.sweep, self.path, self.output, name, values, self.extra)

    def own_runs(self, trial: Any) -> list[Run]:
        """The runs of a trial alone."""
        return own(self.runs(name_of(trial), self.study.values(trial)), name_of(trial))

    def carry_out(self, launcher: Launcher) -> None:
        """Makes the stages and then the trials that are not done. StageError where a stage fails, or what is no trial's fault."""
        prepared: set[str] = set()
        try:
            with self.study.readable():
                carry_out(self.stages, launcher, prepared)
                while (trial := self.study.open_trial()) is not None:
                    self.make(trial, launcher, prepared)
        except StageError as error:
            raise StageError(error.why, error.log, error.code, "sweep") from None

    def make(self, trial: Any, launcher: Launcher, prepared: set[str]) -> None:
        """Makes the runs of a trial and keeps how it ended: with a score, stopped early, or failed by its settings."""
        name, values = name_of(trial), self.study.values(trial)
        said = ", ".join(f"{key} {shown(values[key])}" for key in values)
        print(f"\n{name} of {self.sweep.trials}: {said}", flush=True)
        steps = [step for step in look(self.runs(name, values), mended=MENDED) if step.run.stage == name]
        look_at = self.judged(trial, steps[0])
        try:
            look_at()
            carry_out(steps, replace(launcher, watch=seldom(look_at)), prepared)
            look_at()
        except Enough:
            self.study.end(trial, "PRUNED")
            shutil.rmtree(steps[0].run.folder / "checkpoints", ignore_errors=True)
            print(f"{name}: stopped early", flush=True)
        except StageError as error:
            if error.code != RoadError.code:
                raise
            self.study.end(trial, "FAIL", why=error.why)
            print(error.why, flush=True)
            if [other.state.name for other in self.study.trials[-IN_A_ROW:]] == ["FAIL"] * IN_A_ROW:
                raise
        else:
            self.judge(trial, steps)

    def judge(self, trial: Any, steps: Sequence[Step]) -> None:
        """Keeps the score of a trial that has finished: the mean over its runs, of one data set or of all."""
        name, why = name_of(trial), "its score is not a number"
        try:
            runs = [Finished.open(step.run.folder) for step in steps]
            wanted = [self.sweep.dataset] if self.sweep.dataset else list(runs[0].results["scores"])
            score = fmean(run.score(dataset) for run in runs for dataset in wanted)
        except RoadError as error:
            score, why = math.nan, str(error)
        if math.isfinite(score):
            self.study.end(trial, "COMPLETE", score)
            best: Any = self.study.best()
            print(f"{name}: {score:.2f} (best so far: {best.value:.2f}, {name_of(best)})", flush=True)
        else:
            self.study.end(trial, "FAIL", why=why)
            print(f"{name}: {why}", flush=True)

    def judged(self, trial: Any, first: Step) -> Callable[[], None]:
        """Raises Enough when the evaluations of a trial's first run say that it is to be stopped."""
        if (prune := self.sweep.prune) is None:
            return nobody
        names = [MEAN] if self.sweep.dataset is None else headlines(self.sweep.dataset, first.config)

        def look() -> None:
            if self.study.hopeless(trial, evaluations(first.run.folder, names), prune):
                raise Enough

        return look


def seldom(look: Callable[[], None]) -> Callable[[], None]:
    """The same, called no more often than every PAUSE."""
    due = 0.0

    def watch() -> None:
        nonlocal due
        if time.monotonic() >= due:
            look()
            due = time.monotonic() + PAUSE

    return watch


def name_of(trial: Any) -> str:
    """What a trial's stage is called."""
    return f"trial-{trial.number:03}"


def shown(value: Any) -> str:
    """A setting's value as a table shows it."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else quote(value, 40)


def identity(sweep: Sweep, steps: Sequence[Step]) -> Inputs:
    """What the trials of a sweep have in common, by a name that people understand; how many are asked for is no part."""
    plain = sweep.model_dump(include={"search", "seed", "dataset", "prune"})
    found: Inputs = {f"search.{key}": among for key, among in plain.pop("search").items()} | plain
    for step in steps:
        inputs, _ = inputs_for(step.run, step.config, step.ds, step.folders)
        found |= {f"{step.run.name}: {key}": value for key, value in inputs.items() if not key.startswith("run ")}
    return json.loads(json.dumps(found))  # as it will be read back


def evaluations(folder: Path, names: Sequence[str]) -> dict[int, float]:
    """The score of each evaluation of a run by step, without that at its end: then there is nothing to stop.

    names: what the score may be called in metrics.jsonl, the first that is there counts.
    """
    try:
        end = json.loads((folder / "config.json").read_text(encoding="utf-8"))["road"]["steps"]
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return {}
    found = {}
    for line in lines:
        if '"loss"' in line:  # a step's; the file may be long
            continue
        try:
            record = json.loads(line)
        except ValueError:  # being written
            continue
        score = next((record[name] for name in names if name in record), None)
        if score is not None and record["step"] < end:
            found[record["step"]] = score
    return found
