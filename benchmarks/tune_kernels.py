"""Which tiles are fastest on this GPU: sweeps those of plan.py, checks each against the definition, and keeps the best.

    python benchmarks/tune_kernels.py              # within 3 minutes of one GPU; writes kernels/road_kernels/tiles.json
    python benchmarks/tune_kernels.py --seconds 120 --output FOLDER    # and what was measured, as JSON
    python benchmarks/tune_kernels.py --rehearse --output FOLDER    # on a CPU: tiny sizes, no times worth keeping

A tile counts by the geometric mean of its times over the problems of its regime (plan.REGIMES), with one teacher and with
three. Tiles that compile to a spill, or that compute something else than the definition, are left out and said. Where time
runs out the tiles that were not measured are named.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from itertools import chain, groupby, islice, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

if "--rehearse" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks when it is imported

import torch
from measure import COLD_BYTES, RESULTS, device_time, environment, host_time
from road_kernels import launch, plan, reference
from road_kernels.backward import backward, gradient_launch
from road_kernels.forward import forward, launches
from road_kernels.mixture import combination, combine
from road_kernels.problem import Problem
from torch import Tensor

TILES = Path(plan.__file__).parent / "tiles.json"
PROBLEMS = {  # regime -> (rows, classes, teachers)
    "hundreds": [(8192, 512, 1), (8192, 512, 3), (8192, 384, 1)],
    "thousands": [(4096, 4096, 1), (4096, 4096, 3)],
    "vocabulary": [(2048, 30528, 1), (2048, 30528, 3), (512, 128256, 1)],
}
TINY = {"hundreds": [(3, 72, 1)], "thousands": [(2, 1032, 2)], "vocabulary": [(1, 16392, 1)]}


class Candidate(NamedTuple):
    """The numbers of a tile as tiles.json keeps them, for one kernel in one regime."""

    kernel: str
    regime: str
    numbers: tuple[int, ...]


LANES = {"hundreds": (32,), "thousands": (32, 64, 128), "vocabulary": (64, 128, 256)}  # that read a row


def candidates(regime: str) -> Iterator[Candidate]:
    """stream, combine: groups, lanes, warps, registers. gradient: classes a thread, warps, registers. The present ones come first."""
    for kernel, tile in (("combine", plan.combine_tile), ("stream", plan.stream_tile)):
        present = tile(PROBLEMS[regime][0][1], 3, 8, torch.device("cpu"))
        yield Candidate(kernel, regime, (present.groups, present.lanes, present.warps, present.registers))
        for lanes, rows in product(LANES[regime], (1, 2) if regime == "thousands" else (1,)):
            for warps in (1, 2, 4) if regime == "hundreds" else (rows * lanes // 32,):
                for groups in (1, 2, 4):
                    yield Candidate(kernel, regime, (groups, lanes, warps, plan.MOST_REGISTERS))
                if kernel == "stream" and regime == "hundreds":  # four groups take nearly all registers: more programs
                    yield Candidate(kernel, regime, (4, lanes, warps, 96))
    yield Candidate("gradient", regime, (16, 4, plan.MOST_REGISTERS))
    for each in (8, 16):
        for warps in (2, 4, 8):
            yield Candidate("gradient", regime, (each, warps, plan.MOST_REGISTERS))


class Case:
    """One problem of a regime, over several copies of its inputs."""

    def __init__(self, size: tuple[int, int, int], device: torch.device, copies: int):
        rows, classes, teachers = size
        generator = torch.Generator(device).manual_seed(0)

        def logits() -> Tensor:
            values = torch.randn(rows, classes, device=device, generator=generator)
            return values.mul_(3).to(torch.float16)

        def labels() -> Tensor:
            return torch.randint(0, classes, (rows,), device=device, generator=generator)

        self.problems = [
            Problem(logits(), [logits() for _ in range(teachers)], labels(), None, None, None, 5.0, 0.1, 22.5, None, -100, "mean")
            for _ in range(copies)
        ]  # fmt: skip
        self.upstream = torch.ones((), device=device)

    def steps(self, kernel: str) -> list[Any]:
        if kernel == "stream":
            return [partial(forward, problem) for problem in self.problems]
        if kernel == "combine":
            return [partial(self.combined, problem) for problem in self.problems]
        saved = [forward(problem)[3] for problem in self.problems]
        return [partial(backward, *given, self.upstream) for given in zip(self.problems, saved, strict=True)]

    def combined(self, problem: Problem) -> Tensor:
        out = plan.padded_logits(problem.student)
        return combine(problem.teachers, problem.labels, None, None, 0.75 if len(problem.teachers) > 1 else None, out)

    def fault(self) -> str:
        """How far off the present tiles are from the definition, on the first copy; empty where they are right."""
        problem = self.problems[0]
        total, hard, soft, saved = forward(problem)
        gradient = backward(problem, saved, self.upstream).double()
        student = problem.student.double().requires_grad_()
        teachers = [logits.double() for logits in problem.teachers]
        expected = reference.kd_loss(problem._replace(student=student, teachers=teachers))
        (exact,) = torch.autograd.grad(expected.total, student)
        scale = 0.75 if len(teachers) > 1 else None
        combined = reference.combine_teachers(teachers, problem.labels, wrong_scale=scale)
        pairs = [*zip((total, hard, soft), (part.detach() for part in expected), strict=True), (gradient, exact)]
        pairs.append((self.combined(problem).double(), combined))
        errors = [float((one - other).abs().max() / other.abs().max()) for one, other in pairs]
        return "" if all(error < 2e-3 for error in errors) else f"off by {max(errors):.2g}"


def use(candidate: Candidate | None) -> None:
    """Has plan.py give the candidate's tile for its kernel and regime."""

    def measured(kernel: str, classes: int, teachers: int, vec: int, device: torch.device) -> list[int] | None:
        if candidate is None or (kernel, plan.regime(classes)) != (candidate.kernel, candidate.regime):
            return None
        return list(candidate.numbers)

    plan.measured = measured
    for kept in (launches, gradient_launch, combination):
        kept.cache_clear()


def judge(candidate: Candidate, sizes: list[tuple[int, int, int]], device: torch.device) -> str:
    """What is wrong with a candidate; empty where nothing is. Few rows are enough; what it compiles is kept on disk."""
    start, spills = launch.start, []

    def counted(*args: Any, **options: Any) -> None:
        spills.append(getattr(start(*args, **options), "n_spills", None) or 0)

    use(candidate)
    launch.start = counted
    try:
        faults = [Case((min(16, rows), classes, teachers), device, 1).fault() for rows, classes, teachers in sizes]
    except Exception as error:  # a tile that does not compile must not end the sweep
        faults = [f"{type(error).__name__}: {str(error)[:80]}"]
    finally:
        launch.start = start
    return next((fault for fault in faults if fault), "spills" if any(spills) else "")


def judged(tasks: list[tuple], seconds: float) -> list[str]:
    """What is wrong with each candidate, by as many processes as compile side by side."""
    pool = ProcessPoolExecutor(min(12, os.cpu_count() or 1), mp_context=get_context("spawn"))
    futures = [pool.submit(judge, *task) for task in tasks]
    done, _ = wait(futures, timeout=seconds)
    pool.shutdown(wait=False, cancel_futures=True)
    return [future.result() if future in done else "not compiled: no time left" for future in futures]


def sweep(
    sizes: dict[str, list[tuple[int, int, int]]], device: torch.device, seconds: float, most: int
) -> list[dict[str, Any]]:
    """A row for each candidate: its mean time in us, or why it has none. `most` candidates of each kernel and regime."""
    began = time.perf_counter()
    wanted = list(
        chain.from_iterable(
            islice((one for one in candidates(regime) if one.kernel == kernel), most)
            for regime in sizes
            for kernel in ("combine", "stream", "gradient")
        )
    )
    tasks = [(candidate, sizes[candidate.regime], device) for candidate in dict.fromkeys(wanted)]
    notes = judged(tasks, 0.65 * seconds) if device.type == "cuda" else [judge(*task) for task in tasks]
    print(f"{len(tasks)} tiles compiled and checked in {time.perf_counter() - began:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    for regime, group in groupby(zip(tasks, notes, strict=True), key=lambda one: one[0][0].regime):
        cases = [Case(size, device, copies(size, device)) for size in sizes[regime]]
        for (candidate, *_), note in group:
            row: dict[str, Any] = {**candidate._asdict(), "us": None, "times": [], "note": note}
            rows.append(row)
            if not note and time.perf_counter() - began > seconds:
                row["note"] = "not measured: no time left"
            if row["note"]:
                continue
            use(candidate)
            for case in cases:
                steps = case.steps(candidate.kernel)
                row["times"].append(device_time(steps, 12, device) or host_time(steps, 1, device).p50)
            row["us"] = math.exp(sum(map(math.log, row["times"])) / len(cases))
    use(None)
    return rows


def copies(size: tuple[int, int, int], device: torch.device) -> int:
    rows, classes, teachers = size
    each = 2 * rows * classes * (1 + teachers)
    return 1 if device.type != "cuda" else max(2, min(6, -(-COLD_BYTES // each)))


def best(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Kernel -> regime -> numbers of the fastest tile."""
    found: dict[str, dict[str, list[int]]] = {}
    for row in sorted((row for row in rows if row["us"]), key=lambda row: row["us"]):
        found.setdefault(row["kernel"], {}).setdefault(row["regime"], list(row["numbers"]))
    return found


def write(table: Path, capability: str, found: dict[str, dict[str, list[int]]]) -> None:
    """Replaces this capability's tiles in the table; what was not measured keeps what is there."""
    tiles = json.loads(table.read_text()) if table.exists() else {}
    kept = tiles.setdefault(capability, {})
    for kernel, regimes in found.items():
        kept.setdefault(kernel, {}).update(regimes)
    table.write_text(json.dumps(tiles, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of tune_kernels.json")
    parser.add_argument(
        "--rehearse", action="store_true", help="on a CPU; the table of tiles goes into the folder, too"
    )
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not given.rehearse else "cpu")
    if device.type == "cpu" and not given.rehearse:
        parser.error("no GPU to measure on; --rehearse goes through it on a CPU")
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if device.type == "cuda" else "rehearsal"
    given.output.mkdir(parents=True, exist_ok=True)
    rows = sweep(TINY, device, given.seconds, 2) if given.rehearse else sweep(PROBLEMS, device, given.seconds, 99)
    for row in rows:
        times = " ".join(f"{taken:.1f}" for taken in row["times"])
        print(f"{row['kernel']:9s} {row['regime']:11s} {row['numbers']!s:20s} {times} {row['note']}")
    found = best(rows)
    content = {"environment": environment(device), "best": found, "rows": rows}
    (given.output / "tune_kernels.json").write_text(json.dumps(content, indent=1) + "\n")
    table = given.output / "tiles.json" if given.rehearse else TILES
    write(table, capability, found)
    print(f"{json.dumps(found)} written to {table}")


if __name__ == "__main__":
    main()
