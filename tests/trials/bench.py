"""What trials are made on: a small run with rows, tokenizer, teacher and soft targets of its own, and what it ends with."""

import json
import shutil
from pathlib import Path

import torch
from runs import tiny_config
from safetensors.torch import load_file

from road_ds.common.hub import SAMPLE
from trials.interrupted import PHASES, Plan, main, write
from trials.processes import Ended, forked, launched

SCRIPT = Path(__file__).with_name("interrupted.py")
STEPS, SAVED = 6, 4  # of the run; and where the kept one was left, as if it had been killed


class Bench:
    """One run on one process (`live`) and one on two, each with its results undisturbed.

    live/ holds all that the first reads and writes; trials damage it, and `restore` brings it back as it was after step
    SAVED. Paths are part of what a run compares, so it lies in one place.
    """

    def __init__(self, root: Path, two: bool = True):
        self.root, self.live, self.kept, self.scratch = root, root / "live", root / "kept", root / "scratch"
        self.log, self.struck = root / "log", root / "struck"
        self.seen: dict[object, str] = {}  # what readers found where nothing was damaged
        self.scratch.mkdir(parents=True)
        self._lay_out()
        self.config = {1: self._write("run", self._one()), 2: self._write("two", self._two())}
        # Kills find no cache: what is counted here finds none either.
        self._expect(self.fork(self._counting(1), cache=self.root / "cache-1"))
        self.truth = {1: results(self.live / "run")}
        if two:
            folder = self.root / "two"
            self._expect(self.launch(self._counting(2), "two", output=folder, cache=self.root / "cache-2"))
            self.truth[2] = results(folder)
        self.events = {ranks: json.loads((root / f"counts-{ranks}").read_text()) for ranks in self.truth}
        shutil.copytree(self.live, self.root / "finished")
        self._leave_off()

    def _lay_out(self) -> None:
        (self.live / "rows").mkdir(parents=True)
        for path in SAMPLE.glob("*.*.*"):
            shutil.copy(path, self.live / "rows")
        shutil.copytree(SAMPLE / "tokenizer", self.live / "tokenizer")
        teacher = self._write("teacher", self._plain(steps=2, output=str(self.live / "teacher"), evaluate_every=0))
        self._expect(forked(run_plan, Plan(), ["--deepspeed_config", str(teacher)], log=self.log))
        taught = self._write("run", self._one())
        self._expect(forked(run_command, ["teach", "--deepspeed_config", str(taught)], log=self.log))

    def _plain(self, **road: object) -> dict:
        settings = {"steps": STEPS, "dropout": 0.1, "save_every": 2, "evaluate_every": 3, "log_every": 1, "keep": 3}
        config = tiny_config(**settings | {"step_timeout": 60, "cache": str(self.live / "cache")} | road)
        block = config["road"]
        block["model"]["tokenizer"] = str(self.live / "tokenizer")
        for settings in block["datasets"].values():
            settings |= {part: str(self.live / "rows" / settings[part][7:]) for part in ("train", "dev")}
            settings["max_rows"] = 30
        config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
        config["gradient_clipping"] = 1.0
        return config

    def _one(self) -> dict:
        teachers = {"inference": [str(self.live / "teacher" / "model" / "inference")]}
        distill = {"objective": "kd", "teachers": teachers, "cache": str(self.live / "targets")}
        return self._plain(output=str(self.live / "run"), select="best", distill=distill)

    def _two(self) -> dict:
        return self._plain(output=str(self.root / "two")) | {"zero_optimization": {"stage": 2}}

    def _write(self, name: str, config: dict) -> Path:
        path = self.root / f"{name}.json"
        path.write_text(json.dumps(config))
        return path

    def _counting(self, ranks: int) -> Plan:
        return Plan(counts=str(self.root / f"counts-{ranks}"))

    def _arguments(self, ranks: int, *more: str, output: Path | None = None, cache: Path | None = None) -> list[str]:
        places = {"road.output": output, "road.cache": cache}
        settings = [part for key, path in places.items() if path for part in ("--set", f"{key}={path}")]
        return ["--deepspeed_config", str(self.config[ranks]), *settings, *more]

    @staticmethod
    def _expect(ended: Ended) -> None:
        if ended.code != 0:
            raise RuntimeError(f"the undisturbed run ended with {ended.code}:\n{ended.errors[-3000:]}")

    def _leave_off(self) -> None:
        """Leaves the live run as it was after step SAVED, and keeps all of it."""
        run = self.live / "run"
        shutil.rmtree(run / "checkpoints" / f"step-{STEPS:08d}")
        shutil.rmtree(run / "model")
        (run / "results.json").unlink()
        shutil.copytree(self.live, self.kept)

    def restore(self, source: str = "kept") -> Path:
        """The live folder, as it was kept ("kept") or as the run ended ("finished")."""
        shutil.rmtree(self.live)
        return Path(shutil.copytree(self.root / source, self.live))

    def fork(self, plan: Plan, *more: str, output: Path | None = None, cache: Path | None = None) -> Ended:
        """The run on one process, under a plan."""
        return forked(run_plan, plan, self._arguments(1, *more, output=output, cache=cache), log=self.log)

    def launch(
        self, plan: Plan, mark: str, *more: str, output: Path, cache: Path | None = None, limit: float = 240
    ) -> Ended:
        """The run on two processes through the launcher, under a plan; mark: by which its processes are known."""
        arguments = self._arguments(2, *more, output=output, cache=cache)
        plan_file = write(plan, self.root / "plan.json")
        return launched(SCRIPT, plan_file, *arguments, ranks=2, mark=mark, log=self.log, limit=limit)

    def phases(self, ranks: int) -> list[str]:
        """The phases of a run in which something can happen."""
        return [phase for phase in PHASES if self.events[ranks].get(phase)]


def run_plan(plan: Plan, arguments: list[str]) -> int:
    """A run, in a forked process."""
    torch.set_num_threads(1)
    return main(plan, arguments)


def run_command(arguments: list[str]) -> int:
    """A command beside training, in a forked process."""
    from road_ds.__main__ import main as command

    torch.set_num_threads(1)
    return command(arguments)


def results(run: Path) -> dict:
    """What a run ends with: weights of every head, scores, predictions."""
    return {
        "weights": {
            f"{path.parent.name}/{name}": value
            for path in sorted(run.glob("model/*/model.safetensors"))
            for name, value in load_file(path).items()
        },
        "scores": json.loads((run / "results.json").read_text())["scores"],
        "predictions": {path.name: path.read_text() for path in sorted(run.glob("predictions/*.jsonl"))},
    }


def difference(truth: dict, run: Path) -> str:
    """In what a run's results differ from the true ones, "" when in nothing."""
    found = results(run)
    if found["weights"].keys() != truth["weights"].keys():
        return "other heads or weights are there"
    changed = [key for key, value in truth["weights"].items() if not torch.equal(value, found["weights"][key])]
    if changed:
        return f"{len(changed)} of {len(truth['weights'])} weights differ, the first: {changed[0]}"
    return next((f"other {key}" for key in ("scores", "predictions") if found[key] != truth[key]), "")
