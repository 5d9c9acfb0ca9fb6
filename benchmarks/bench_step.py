"""Where a step goes: its rate, its parts and how long the device is busy, ours beside the bare loop, by micro-batch.

    python benchmarks/bench_step.py --preset electra-large --micro 32 --micro 128 --output FOLDER
    python benchmarks/bench_step.py --preset tiny --micro 16 --steps 2 --output FOLDER       # a rehearsal on a CPU

The bare loop runs over our layers on our batches, which lie ready (see bench_train.py). "device busy" is the time that the
device's kernels took in one step, by the profiler; "step" is the engine's update, waited for.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from length_mix import write_mix
from measure import environment, table
from presets import LONGEST, PRESETS, Preset
from providers import Bare, Case, Ours, Rows, wait

from road_ds.common.log import quiet_libraries, write_json
from road_ds.common.ranks import Ranks

COLUMNS = ["provider", "micro-batch", "examples/s", "ms a step", "device busy ms", "busy", "forward ms", "backward ms",
           "step ms", "peak GB"]  # fmt: skip


def busy(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of some work, and of the device's kernels in it (0 on a CPU)."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began, 0.0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        work()
        wait(device)
        seconds = time.perf_counter() - began
    return seconds, sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def measured(name: str, provider: Any, rows: Rows, steps: int) -> dict[str, Any]:
    """A row of the table: a turn of `steps` steps after two of warm-up, then one step in parts and one profiled."""
    device = rows.ranks.device
    provider.turn(range(1, 3))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    work = provider.turn(range(3, 3 + steps))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    parts = provider.split(3 + steps)
    seconds, kernels = busy(lambda: provider.turn(range(4 + steps, 5 + steps)), device)
    return {
        "provider": name,
        "micro-batch": rows.preset.micro,
        "examples/s": rows.preset.rows * steps / work.seconds,
        "ms a step": 1e3 * work.seconds / steps,
        "device busy ms": 1e3 * kernels or None,
        "busy": kernels / (work.seconds / steps) or None,
        **{f"{part} ms": value for part, value in parts.items()},
        "peak GB": peak,
        "seconds while profiled": seconds,
    }


def bench(preset: Preset, ranks: Ranks, steps: int, only: list[str] | None) -> list[dict[str, Any]]:
    """The rows of one preset, of the providers asked for."""
    cuda = ranks.device.type == "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        write_mix(scratch / "mix", 2048, LONGEST, preset.config["vocab_size"])
        case = Case(preset, "bf16" if cuda else "fp32", "wall", ["free"], [int(cuda)], 0, scratch)
        rows = Rows.of(case, ranks)
        found = []
        for name, make in (
            ("ours free", lambda: Ours(rows, "free", case.stages[0], scratch)),
            ("bare loop, our layers", lambda: Bare(rows, own=True)),
        ):
            if only and name not in only:
                continue
            provider: Any = make()
            found.append(measured(name, provider, rows, steps))
            print(table(found, COLUMNS), flush=True)
            del provider
            if cuda:
                torch.cuda.empty_cache()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="electra-large")
    parser.add_argument("--micro", type=int, action="append", help="rows per micro-batch; may be given more than once")
    parser.add_argument("--steps", type=int, default=10, help="of a turn, whose first waits for its batches")
    parser.add_argument("--only", action="append", metavar="PROVIDER", help="as the table names it")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    quiet_libraries()
    ranks = Ranks.start(1800.0)
    found: list[dict[str, Any]] = []
    for micro in options.micro or [PRESETS[options.preset].micro]:
        found += bench(PRESETS[options.preset]._replace(micro=micro), ranks, options.steps, options.only)
        facts = {"environment": environment(ranks.device), "preset": options.preset, "steps": options.steps}
        write_json(options.output / "bench_step.json", facts | {"rows": found})
    print(table(found, COLUMNS))
    ranks.leave()


if __name__ == "__main__":
    main()
