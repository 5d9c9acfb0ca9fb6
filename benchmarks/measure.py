"""How benchmarks measure: times, memory, launches, the machine's own limits, and one table and one JSON for each run.

On CUDA two times of a step: of the device, which is the sum of its kernels as the profiler sees them, and of the host, which
starts them and does not wait. Both over rotated copies of large inputs, so that the L2 cache is cold. On CPU: wall time.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

RESULTS = Path(__file__).resolve().parent / "results"
SMALL_BYTES = 2**22  # up to here one copy of the inputs is enough
COLD_BYTES = 2**28  # rotated inputs add up to more than any L2 cache
Step = Callable[[], Any]


class Timing(NamedTuple):
    """Microseconds of one step."""

    p20: float
    p50: float
    p80: float


class Limits(NamedTuple):
    """What the machine can do: a device copy in bytes/s, and a launch that does nothing, in us of the device and the host."""

    copy_rate: float
    empty_device: float
    empty_host: float


def percentiles(microseconds: Sequence[float]) -> Timing:
    ordered = sorted(microseconds)
    return Timing(*(ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.2, 0.5, 0.8)))


def host_time(steps: Sequence[Step], repeats: int, device: torch.device) -> Timing:
    """The host's Timing of one step, without waiting for the device; `steps` do the same on different inputs, in turns."""
    for step in steps:
        step()
    wait(device)
    taken = []
    for index in range(repeats):
        start = time.perf_counter()
        steps[index % len(steps)]()
        taken.append(1e6 * (time.perf_counter() - start))
        wait(device)
    return percentiles(taken)


def device_time(steps: Sequence[Step], repeats: int, device: torch.device) -> float | None:
    """Microseconds that the device works on one step, the mean over `repeats`; None on CPU. It leaves gaps between kernels out."""
    if device.type != "cuda":
        return None
    for step in steps:
        step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for index in range(repeats):
            steps[index % len(steps)]()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / repeats


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(step: Step, device: torch.device) -> int | None:
    """Bytes that a step takes on top of what is there before it; None on CPU."""
    if device.type != "cuda":
        return None
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def launches_and_syncs(step: Step, device: torch.device) -> tuple[int | None, int | None]:
    """Kernels and memory operations on the device, and waits of the host, in one step; None on CPU."""
    if device.type != "cuda":
        return None, None
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        step()
    events = profile.events()
    launched = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
    # The profiler itself waits once when it ends; a step's own waits come on top.
    waits = sum(bool(re.match(r"cuda(Stream|Device|Event)Synchronize", event.name)) for event in events) - 1
    return launched, max(0, waits)


def limits(device: torch.device) -> Limits:
    """The measured copy rate, and the smallest kernel that PyTorch has: one block that writes one byte."""
    size = 2**29 if device.type == "cuda" else 2**26
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> None:
        target.copy_(source)

    def nothing() -> None:
        target[:1].zero_()

    taken = device_time([copy], 20, device) or host_time([copy], 20, device).p50
    return Limits(2e6 * size / taken, device_time([nothing], 50, device) or 0.0, host_time([nothing], 200, device).p50)


def copies(bytes_each: int, device: torch.device) -> int:
    """How many copies of the inputs keep the cache cold; 1 for small problems and on CPU."""
    if device.type != "cuda" or bytes_each <= SMALL_BYTES:
        return 1
    return max(2, min(8, -(-COLD_BYTES // bytes_each)))


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on: device and versions, no date."""
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    for package in ("triton", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["cuda"] = torch.version.cuda
    else:
        found["device"] = "cpu"
        found["threads"] = torch.get_num_threads()
        found["machine"] = platform.machine()
    return found


def folder(device: torch.device) -> Path:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """The rows as a Markdown table; what was not measured is a dash."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        return "-" if value is None else str(value)

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def save(path: Path, rows: list[dict[str, Any]], device: torch.device, machine: Limits) -> None:
    """Writes the rows so far with the environment: what comes later may be stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(device), "limits": machine._asdict(), "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")


def report(
    path: Path, rows: list[dict[str, Any]], columns: Sequence[str], device: torch.device, machine: Limits
) -> None:
    """Prints the table and writes it."""
    print(json.dumps(environment(device)))
    print(
        f"copy {machine.copy_rate / 1e9:.0f} GB/s, a launch that does nothing {machine.empty_device:.2f} us of the device, "
        f"{machine.empty_host:.1f} us of the host"
    )
    print(table(rows, columns))
    save(path, rows, device, machine)
    print(f"written to {path}")
