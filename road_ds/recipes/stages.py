"""A recipe at work: which of its runs are done, which are to be made, and their launching one after the other."""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from road_ds.common.errors import RoadError
from road_ds.common.log import counted, table
from road_ds.config.file import load_config
from road_ds.config.road import RoadConfig
from road_ds.distillation.objective import Taught
from road_ds.distillation.registry import neighbours_of, objective_from
from road_ds.engine.checkpoint import committed
from road_ds.engine.run_folder import MARKER, STATUS, RunFolder
from road_ds.recipes.inputs import FILE, Inputs, Missing, differences, inputs_of, is_finished, keep_inputs, kept_inputs
from road_ds.recipes.launcher import Launcher
from road_ds.recipes.recipe import Run, chosen, with_dependents
from road_ds.tasks.registry import heads

SKIP, START, RESUME, REDO = "done", "to do", "resume", "redo"
REDONE = "add --redo {} to make it and what needs it anew, or use another --output"


class StageError(RoadError):
    """A run of a recipe or sweep that failed: why, where its output is, and the exit code to end with."""

    def __init__(self, why: str, log: Path, code: int, made_by: str = "recipe"):
        super().__init__(f"{why}\nits output is in {log}; the same {made_by} goes on from here")
        self.why, self.log, self.code = why, log, code


@dataclass(frozen=True)
class Step:
    """A run of a recipe, its validated configuration, what is to be done about it, which rows are not there, and the folders
    of all runs."""

    run: Run
    config: RoadConfig
    ds: dict[str, Any]
    state: str
    missing: Missing
    folders: dict[str, Path]

    @property
    def teaches(self) -> bool:
        """Whether soft targets are to be written before the training."""
        objective = objective_from(self.config)
        return not self.run.models and isinstance(objective, Taught) and objective.source == "cached"

    @property
    def lesson(self) -> str:
        """What its neighbours and soft targets are made from: an objective's own settings, as its temperature, are no part."""
        asked = objective_from(self.config).model_dump(include={*Taught.model_fields} - {"objective"})
        read = self.config.model_dump(include={"model", "tasks", "datasets", "heads", "cache"})
        return json.dumps([asked, read])

    @property
    def retrieves(self) -> bool:
        """Whether neighbours are to be found before the teaching."""
        return not self.run.models and bool(neighbours_of(objective_from(self.config)))

    @property
    def kind(self) -> str:
        """What is launched."""
        if self.run.models:
            return f"evaluate {counted(len(self.run.models), 'model')}"
        return ", ".join([*["neighbours"] * self.retrieves, *["teach"] * self.teaches, "train"])


def settings_of(run: Run) -> tuple[RoadConfig, dict[str, Any]]:
    """A run's settings, those of its tasks and objective looked at too."""
    config, ds = load_config(run.config, run.overrides)
    heads(config)
    objective_from(config)
    return config, ds


def look(runs: Sequence[Run], redo: Sequence[str] = (), *, rows: bool = True, mended: str = REDONE) -> list[Step]:
    """What is to be done about each run; rows: whether theirs must be there, as for more than a plan; mended: what helps where
    one was made from other inputs.

    RoadError for settings that do not hold, for results of other inputs, and for missing rows.
    """
    again = with_dependents(chosen(list(redo), list(runs), "--redo"), list(runs))
    folders = {run.name: run.folder for run in runs}
    steps = []
    for run in runs:
        try:
            config, ds = settings_of(run)
            inputs, missing = inputs_for(run, config, ds, folders)
        except RoadError as error:
            raise RoadError(f"{run.name}: {error}") from None
        state = REDO if run.name in again else state_of(run, inputs, missing, mended)
        steps.append(Step(run, config, ds, state, missing, folders))
    if rows and (said := absent(steps)):
        raise RoadError("\n".join(said))
    return steps


def absent(steps: Sequence[Step]) -> list[str]:
    """A line for each file or folder that runs need and that cannot be read, with their names."""
    runs: dict[str, dict[str, None]] = {}
    for step in steps:
        for fault in step.missing.values():
            runs.setdefault(fault, {})[step.run.name] = None
    return [
        f"{', '.join([*names][:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {fault}"
        for fault, names in runs.items()
    ]


def inputs_for(run: Run, config: RoadConfig, ds: dict[str, Any], folders: dict[str, Path]) -> tuple[Inputs, Missing]:
    """What a run is made from, or would be, and the rows that are not there."""
    extra = {"evaluate": list(run.models)} if run.models else {}
    return inputs_of(config, ds, extra, {name: folders[name] for name in run.needs})


def state_of(run: Run, inputs: Inputs, missing: Missing, mended: str) -> str:
    """What is to be done about a run. RoadError when its folder holds something that was made from other inputs.

    Rows that are not there cannot be compared.
    """
    before = kept_inputs(run.folder)
    if before is None:
        if RunFolder(run.folder).leftovers():
            raise RoadError(
                f"{run.folder} holds a run that no recipe made ({FILE} is missing): move it away, or use --output"
            )
        return START
    finished, saved = is_finished(run.folder), bool(committed(run.folder / "checkpoints"))
    before = {key: value for key, value in before.items() if not key.startswith(tuple(missing))}
    if (changed := differences(before, inputs)) and (finished or saved):
        raise RoadError(
            f"{run.folder} was made from other inputs than {run.name} has now:\n  "
            + "\n  ".join(changed)
            + "\n"
            + mended.format(run.name)
        )
    return SKIP if finished else RESUME if saved else START


def describe(steps: Sequence[Step]) -> str:
    """The plan as a table."""
    rows = [(i, s.run.name, s.kind, s.state, ", ".join(s.run.needs) or "-") for i, s in enumerate(steps, 1)]
    return table(rows, ("", "run", "what", "state", "needs"))


def commands(step: Step, launcher: Launcher, *more: str, prepare: bool = True) -> Iterator[list[str]]:
    """The command lines of a run, in order; prepare: whether neighbours and soft targets may have to be made."""
    run = step.run
    if run.models:
        overrides = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in run.settings.items()]
        yield launcher.evaluate(run.models, run.config, overrides, run.folder)
        return
    if step.retrieves and prepare:
        yield launcher.neighbours(run.config, run.overrides)
    if step.teaches and prepare:
        yield launcher.teach(run.config, run.overrides)
    yield launcher.train(run.config, run.overrides, *more)


def carry_out(steps: Sequence[Step], launcher: Launcher, prepared: set[str] | None = None) -> None:
    """Makes every run that is not done. StageError for the first that fails; those before it stay done.

    prepared: which neighbours and soft targets are there, as `Step.lesson`; those that are made here are added.
    """
    prepared = set() if prepared is None else prepared
    for number, step in enumerate(steps, 1):
        run = step.run
        head = f"[{number}/{len(steps)}] {run.name}"
        if step.state == SKIP:
            print(f"{head}: done", flush=True)
            continue
        resume = ["--resume"] if step.state == RESUME else []
        if not resume:
            wipe(run)
        print(f"{head}: {step.kind}{', resumed' if resume else ''}", flush=True)
        inputs, _ = inputs_for(run, step.config, step.ds, step.folders)
        keep_inputs(run.folder, inputs)
        for command in commands(step, launcher, *resume, prepare=step.lesson not in prepared):
            code, last = launcher.run(command, run.folder)
            log = run.folder / "log.txt"
            if code != 0:
                why = f"{run.name} failed: {last.removeprefix('error: ')}"
                raise StageError(why, log, code if 0 < code < 128 else 1)
        if not is_finished(run.folder):
            raise StageError(f"{run.name} ended without results", log, 1)
        prepared.add(step.lesson)


def wipe(run: Run) -> None:
    """Removes what an earlier making of a run left in its folder, its status and mark included.

    RoadError where something lies there that no run left; an evaluation leaves no mark.
    """
    folder = RunFolder(run.folder)
    if not (run.models and kept_inputs(run.folder)):
        folder.refuse_use(resume=False)
    folder.lock()
    try:
        folder.clear()
        for name in (STATUS, MARKER):
            (run.folder / name).unlink(missing_ok=True)
    finally:
        folder.release()


def results(steps: Sequence[Step]) -> str:
    """The scores of all runs as a table."""
    rows = []
    for step in steps:
        found = json.loads((step.run.folder / "results.json").read_text(encoding="utf-8"))
        for name, result in found["scores"].items():
            value = f"{result['scores'][result['headline']]:.1f}"
            rows.append((step.run.name, name, result["headline"], value, f"{found['wall_seconds']:,.0f}"))
    return table(rows, ("run", "data set", "metric", "dev", "seconds"))


@contextmanager
def locked(output: Path) -> Iterator[IO]:
    """The output folder for this process alone, and for a run it left behind. RoadError when it is taken."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        file = (output / ".recipe.lock").open("w")
    except OSError as error:
        raise RoadError(f"--output {output}: cannot be written: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RoadError(
                f"{output}: a recipe or sweep, or a run that a killed one left behind, is at work there: wait for it or stop it"
            ) from None
        yield file
