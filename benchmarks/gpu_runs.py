"""mtl.json through the launcher on a GPU: precisions and ZeRO stages, losses held against a CPU's, a run killed and resumed.

    python benchmarks/gpu_runs.py --output FOLDER [--steps 40] [--rehearse]

Several runs share the device at a time: the model is tiny, and what is asked is whether they are right. A table, and
gpu_runs.json in FOLDER; exit code 1 where a run failed or ended elsewhere. --rehearse: on a CPU, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from measure import table

from road_ds.common.log import write_json
from road_ds.common.ranks import free_port

ROOT = Path(__file__).resolve().parent.parent
EXACT = ["road.dropout=0", "road.padding=fixed", "road.precision=fp32", "zero_optimization.stage=0"]


@dataclass(frozen=True)
class Trial:
    """A run: settings as KEY=VALUE; killed: the step after which it is killed and resumed, 0 for never."""

    name: str
    settings: list[str]
    cpu: bool = False
    killed: int = 0


def trials(rehearse: bool, steps: int) -> list[Trial]:
    """All runs of one call."""
    exact = [*EXACT, "road.steps=12"]
    equal = [Trial("fp32, no dropout, CPU", exact, cpu=True), Trial("fp32, no dropout", exact, cpu=rehearse)]
    kinds = (
        [("fp32", 1)] if rehearse else [("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 1), ("fp16", 2), ("fp16", 3)]
    )
    runs = [Trial(f"{kind}, ZeRO {stage}", [f"road.precision={kind}", f"zero_optimization.stage={stage}",
                                            f"road.steps={steps}"], cpu=rehearse) for kind, stage in kinds]  # fmt: skip
    again = runs[0]
    killed = Trial(f"{again.name}, killed", [*again.settings, "road.save_every=5"], rehearse, steps // 2)
    return [killed, *equal, *runs]  # the longest first


def run(trial: Trial, folder: Path) -> dict:
    """What a run came to: exit code, seconds, losses."""
    cache = folder / "cache"
    settings = [
        *trial.settings,
        f"road.output={folder / trial.name.replace(', ', '-').replace(' ', '')}",
        f"road.cache={cache}",
    ]
    output = Path(settings[-2].partition("=")[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"DS_ACCELERATOR": "cpu"} if trial.cpu else {})
    sets = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--master_port", str(free_port()),
               "road_ds/train.py", "--deepspeed_config", "ds_configs/mtl.json", *sets]  # fmt: skip
    began = time.perf_counter()
    with (folder / f"{output.name}.log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        while trial.killed and child.poll() is None and last_step(output) < trial.killed:
            time.sleep(0.2)
        if trial.killed:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            child = subprocess.Popen([*command, "--resume"], cwd=ROOT, env=env, stdout=log, stderr=log)
        code = child.wait()
    lines = [line for line in records(output) if "loss" in line]
    return {
        "run": trial.name,
        "exit code": code,
        "seconds": time.perf_counter() - began,
        "steps": len(lines),
        "last loss": lines[-1]["loss"] if lines else None,
        "losses": [line["loss"] for line in lines],
    }


def records(folder: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def last_step(folder: Path) -> int:
    return max((line["step"] for line in records(folder)), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where the runs lie (default: OUTPUT/runs)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=4, help="runs at a time")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    scratch = options.scratch or options.output / "runs"
    scratch.mkdir(parents=True)
    every = trials(options.rehearse, options.steps)
    found = []

    def told(trial: Trial) -> None:
        found.append(run(trial, scratch))
        one = found[-1]
        print(
            f"{one['run']}: exit code {one['exit code']}, {one['seconds']:.0f} s, last loss {one['last loss']}",
            flush=True,
        )
        write_json(options.output / "gpu_runs.json", {"runs": found})  # what is there when time is over

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(told, every))
    order = [trial.name for trial in every]
    found.sort(key=lambda one: order.index(one["run"]))
    again, cpu, exact, whole = found[:4]
    apart = max(abs(a - b) for a, b in zip(cpu["losses"], exact["losses"], strict=True))
    print(table(found, ["run", "exit code", "seconds", "steps", "last loss"]))
    print(f"fp32 without dropout: losses differ from the CPU's by {apart:.2g} at most")
    print(f"killed and resumed: the last loss is {again['last loss']}, of the run never killed {whole['last loss']}")
    write_json(options.output / "gpu_runs.json", {"runs": found, "fp32 against the CPU": apart})
    return int(any(one["exit code"] for one in found) or apart > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
