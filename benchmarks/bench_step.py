"""Where a step goes: its rate, its parts and how long the device is busy, ours (compiled, too) beside the bare loop.

    python benchmarks/bench_step.py --preset electra-large --micro 32 --micro 128 --output FOLDER
    python benchmarks/bench_step.py --preset tiny --micro 16 --steps 2 --output FOLDER       # a rehearsal on a CPU

The bare loop runs over our layers on our batches, which lie ready (see bench_train.py). "joined" is road.join_micro_batches, "compiled" road.compile. "device busy"
is the time that the device's kernels took in one step, by the profiler, and its share of the same step's time without it; "launches"
their number; what is left of that step is idle, by the length of the gaps, and the JSON names what ran around the longest. "step" is the engine's update, waited for; "projected"
the peak by the memory model of `check`, "warm s" what it took to build and to train two steps. The JSON has every micro-batch of the
step in parts: its tokens, and its forward and backward pass, waited for: of few tokens they are the host's time, of many the device's.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from length_mix import write_mix
from measure import environment, table
from presets import LONGEST, PRESETS, Preset
from providers import Bare, Case, Ours, Rows, demand_of, wait

from road_ds.common.log import quiet_libraries, write_json
from road_ds.common.ranks import Ranks

KINDS = {"under 20 us": 20.0, "under 1 ms": 1e3, "of more": float("inf")}  # microseconds
COLUMNS = ["provider", "micro-batch", "examples/s", "ms a step", "device busy ms", "busy", "launches", *(f"idle ms in gaps {kind}" for kind in KINDS),
           "forward ms", "backward ms", "step ms", "peak GB", "projected GB", "warm s"]  # fmt: skip


NAMES = ("ours", "ours, joined", "ours, compiled", "bare loop, our layers")


class Span(NamedTuple):
    """Something that the device did, in microseconds."""

    start: float
    end: float
    name: str


def busy(work: Callable[[], Any], device: torch.device) -> tuple[float, list[Span]]:
    """Seconds of some work, and what the device did in it (nothing on a CPU)."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began, []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        work()
        wait(device)
        seconds = time.perf_counter() - began
    on_device = torch.autograd.DeviceType.CUDA
    events = [event for event in profile.events() if event.device_type == on_device and not event.is_user_annotation]
    return seconds, [Span(event.time_range.start, event.time_range.end, event.name) for event in events]


def gaps(spans: list[Span]) -> list[tuple[float, str, str]]:
    """Between the first span and the last, where nothing ran: for how many microseconds, behind what and before what."""
    found, last = [], None
    for span in sorted(spans):
        if last is not None and span.start > last.end:
            found.append((span.start - last.end, last.name, span.name))
        if last is None or span.end > last.end:
            last = span
    return found


def idle(spans: list[Span]) -> dict[str, Any]:
    """Where the device waited in a step: milliseconds by the length of the gaps, and the longest of them."""
    found, least = gaps(spans), 0.0
    row: dict[str, Any] = {"launches": len(spans)}
    for kind, most in KINDS.items():
        row[f"idle ms in gaps {kind}"] = sum(gap for gap, *_ in found if least <= gap < most) / 1e3
        least = most
    row["longest gaps"] = [[gap / 1e3, before[:60], after[:60]] for gap, before, after in sorted(found)[:-9:-1]]
    return row


def projected(rows: Rows, stage: int) -> float:
    """GB of a run with these micro-batches, by the memory model, of the heaviest that its steps can have."""
    demand = demand_of(rows, stage, "free")
    return demand.bytes(rows.preset.micro) / 1e9


def measured(name: str, make: Callable[[], Any], rows: Rows, steps: int) -> dict[str, Any]:
    """A row of the table: a turn of `steps` steps after two of warm-up, then one step in parts, and one alone and profiled."""
    device = rows.ranks.device
    began = time.perf_counter()
    provider = make()
    provider.turn(range(1, 3))
    warm = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    work = provider.turn(range(3, 3 + steps))
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    parts = provider.split(3 + steps)
    alone = range(4 + steps, 5 + steps)
    one = provider.turn(alone)
    seconds, spans = busy(lambda: provider.turn(alone), device)
    kernels = sum(span.end - span.start for span in spans) / 1e6
    return {
        "provider": name,
        "micro-batch": rows.preset.micro,
        "examples/s": rows.preset.rows * steps / work.seconds,
        "ms a step": 1e3 * work.seconds / steps,
        "device busy ms": 1e3 * kernels or None,
        "busy": kernels / one.seconds or None,
        **{f"{part} ms": value for part, value in parts.items()},
        "peak GB": peak,
        "projected GB": projected(rows, int(device.type == "cuda")) if name.startswith("ours") else None,
        "warm s": warm,
        "seconds while profiled": seconds,
        **(idle(spans) if spans else {}),
        "pieces": getattr(provider, "pieces", None),
    }


def bench(preset: Preset, ranks: Ranks, steps: int, only: list[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of one preset, of the providers asked for."""
    cuda = ranks.device.type == "cuda"
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        write_mix(scratch / "mix", 2048, LONGEST, preset.config["vocab_size"])
        case = Case(preset, "bf16" if cuda else "fp32", "wall", ["free"], [int(cuda)], 0, scratch)
        rows = Rows.of(case, ranks)
        made: dict[str, Callable[[], Any]] = {
            "ours": lambda: Ours(rows, "free", case.stages[0], scratch),
            "ours, joined": lambda: Ours(rows, "free", case.stages[0], scratch, joined=True),
            "ours, compiled": lambda: Ours(rows, "free", case.stages[0], scratch, compiled=True),
            "bare loop, our layers": lambda: Bare(rows, own=True),
        }
        for name in only or NAMES:
            yield measured(name, made[name], rows, steps)
            if cuda:
                gc.collect()
                torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="electra-large")
    parser.add_argument("--micro", type=int, action="append", help="rows per micro-batch; may be given more than once")
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--only", action="append", choices=NAMES, help="may be given more than once")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    quiet_libraries()
    ranks = Ranks.start(1800.0)
    facts = {"environment": environment(ranks.device), "preset": options.preset, "steps": options.steps}
    found: list[dict[str, Any]] = []
    for micro in options.micro or [PRESETS[options.preset].micro]:
        for row in bench(PRESETS[options.preset]._replace(micro=micro), ranks, options.steps, options.only):
            found.append(row)
            print(table(found, COLUMNS), flush=True)  # what comes later may be stopped
            write_json(options.output / "bench_step.json", facts | {"rows": found})
    ranks.leave()


if __name__ == "__main__":
    main()
