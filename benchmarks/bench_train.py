"""Examples per second of a training step: ours, a bare PyTorch loop, Hugging Face's Trainer; on the same rows in turns.

    python benchmarks/bench_train.py                                     # the presets that fit the device
    python benchmarks/bench_train.py --preset electra-small --turns 5
    python benchmarks/bench_train.py --quick                             # within 4 minutes on two CPU cores
    deepspeed --num_gpus 8 benchmarks/bench_train.py --preset paper      # 8 x V100
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_gpus 2 benchmarks/bench_train.py --preset tiny --quick

Fresh weights; rows of the nine data sets' assumed lengths (length_mix.py), at most 384 tokens. In every turn our data plan
draws some steps, and each provider trains on just these rows, one after another in an order that changes with the turn:

  ours free | grouped | fixed    the whole of road_ds.loop.fit under DeepSpeed, by padding (and ZeRO stage)
  ..., N teachers                the same with N cached teachers for every data set and Weighted KD (--teachers N)
  bare loop                      a plain PyTorch loop over transformers' models on our grouped batches, assembled
                                 beforehand: forward, backward, clip, fused AdamW, no more
  bare loop, our layers          the same loop over the layers of ours: our attention, and on a CPU our dropout, linear
                                 layers and memory; what is left between this and ours is the engine and our loop
  Trainer                        transformers.Trainer as in its question-answering example: rows padded to 384 tokens
  Trainer by length              the same with its own grouping by length, padded to the longest of a batch

All take as many rows per micro-batch and step, the same precision, dropout 0.1 and clipping. The Trainer trains one
question-answering head on all rows, ours four heads. Its sampler sorts all rows of a turn, as it would sort those of 50
steps. One process on a CPU: each provider lives in a process of its own, since what ours has the allocator do would speed up
the others beside it; peak GB is that process's memory. Several processes and GPUs are shared by all; peak GB is what a provider
adds on a GPU.
Rates are medians over turns; ratios of times are taken turn by turn: "x Trainer" is how many times as fast as Trainer's
example, "/ bare" the time over that of the bare loop on our layers. The time split is of one step before the turns, waiting for
the device after each part. The table is printed and written after every turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from apart import Apart, provider_of
from length_mix import write_mix
from measure import environment, folder, table
from presets import LONGEST, PASSES, PRESETS, weights_of
from providers import CLOCKS, DTYPES, Case, Rows, Work, demand_of, providers, wait

from road_ds.common.log import quiet_libraries, write_json
from road_ds.common.ranks import Ranks
from road_ds.config.fit import AUTO, fit_precision, micro_sizes
from road_ds.engine.micro_batch import ROOM, on_cpu
from road_ds.engine.speed import keep_freed_memory
from road_ds.models.linear import Linear, mkl_is_slow

POOL = 2048  # rows per data set: what a window of the plan sorts
COLUMNS = [
    "provider", "examples/s", "tokens/s", "padding", "TFLOP/s", "of peak", "peak GB", "data ms", "forward ms",
    "backward ms", "step ms", "x Trainer", "x by length", "/ bare",
]  # fmt: skip


def flops(config: dict[str, Any], lengths: np.ndarray) -> float:
    """Floating-point operations of forward and backward on real tokens: 6 per matrix weight, and the attention."""
    tokens = lengths.astype(float)
    attention = 12 * config["num_hidden_layers"] * config["hidden_size"] * (tokens**2).sum()
    return float(6 * weights_of(config) * tokens.sum() + attention)


def peak_flops(rows: Rows) -> float:
    """The floating-point operations per second of a large linear layer, as ours computes it; the fastest of ten."""
    device = rows.ranks.device
    size = 8192 if device.type == "cuda" else 2048
    if device.type == "cpu":
        keep_freed_memory()
    kind = Linear if device.type == "cpu" and mkl_is_slow() else torch.nn.Linear
    layer = kind(size, size, bias=False, device=device, dtype=DTYPES[rows.precision])
    taken = []
    with torch.no_grad():
        values = torch.randn(size, size, device=device, dtype=DTYPES[rows.precision])
        for _ in range(11):
            began = rows.clock()
            layer(values)
            wait(device)
            taken.append(rows.clock() - began)
    return 2 * size**3 / min(taken[1:])


@dataclass
class Measured:
    """A provider, and what it did in each turn so far. own: bytes on the GPU that it keeps; peak: with what a turn adds."""

    provider: Any
    split: dict[str, float]
    own: int
    peak: int = 0
    works: list[Work] = field(default_factory=list)

    @classmethod
    def of(cls, make: Callable[[], Any], warm: range, last: int) -> Measured:
        """A provider that has trained on some steps and one more, which do not count: memory grows, optimizers make their moments."""
        before = allocated()
        provider = make()
        provider.turn(warm)
        return cls(provider, provider.split(last), allocated() - before)

    def turn(self, steps: range) -> None:
        """One more turn."""
        before = allocated()
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        self.works.append(self.provider.turn(steps))
        if isinstance(self.provider, Apart):
            self.peak = self.provider.peak()
        elif before:
            self.peak = max(self.peak, self.own + torch.cuda.max_memory_allocated() - before)


def allocated() -> int:
    """Bytes of the GPU's memory in use; 0 on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0


def automatic(rows: Rows, stage: int, padding: str, providers: int) -> int:
    """The rows of a micro-batch that a run would take, beside what all providers keep."""
    sizes = micro_sizes(rows.preset.rows, PASSES, rows.ranks.world_size)
    if rows.ranks.device.type == "cpu":
        return on_cpu(sizes)
    demand = demand_of(rows, stage, padding)
    free = torch.cuda.mem_get_info()[0]
    return demand.fitting(sizes, ROOM * free - (providers - 1) * demand.held)[0]


def ratio(above: list[Work], below: list[Work]) -> dict[str, float]:
    """How many times as long `above` took as `below`, turn by turn."""
    values = [a.seconds / b.seconds for a, b in zip(above, below, strict=True)]
    return {"median": median(values), "least": min(values), "most": max(values)}


def ratios(works: dict[str, list[Work]]) -> dict[str, dict[str, float]]:
    """The comparisons that matter: the fastest of ours with either Trainer, ours grouped with the bare loops."""
    ours = [name for name in works if name.startswith("ours") and not name.endswith("teachers")]
    if not ours:
        return {}
    best = min(ours, key=lambda name: median(work.seconds for work in works[name]))
    found = {f"{best} against {name}": ratio(works[name], works[best]) for name in works if name.startswith("Trainer")}
    for name in works:
        if name.endswith("teachers") and (plain := name.rpartition(",")[0]) in works:
            found[f"time of {name} / without"] = ratio(works[name], works[plain])
    grouped, bare = ([name for name in works if name.startswith(kind)] for kind in ("ours grouped", "bare loop"))
    for name, loop in product((name for name in grouped if name in ours), bare):
        found[f"time of {name} / {loop}"] = ratio(works[name], works[loop])
    return found


def against(works: dict[str, list[Work]], name: str) -> dict[str, float]:
    """How a provider compares with each other one that is a reference, the median of the ratios turn by turn."""
    above = {"x Trainer": "Trainer", "x by length": "Trainer by length"}
    found = {key: ratio(works[other], works[name])["median"] for key, other in above.items() if works.get(other)}
    loop = "bare loop, our layers"
    return found | ({"/ bare": ratio(works[name], works[loop])["median"]} if works.get(loop) else {})


def bench(
    name: str, asked: str, micro: Any, options: argparse.Namespace, ranks: Ranks, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The table and ratios of one preset in one precision; `tell` is given them after every turn.

    micro: rows of a micro-batch, "auto", or None for the preset's.
    """
    preset = PRESETS[name]
    preset = preset._replace(rows=options.rows or preset.rows)
    most = preset.rows // (PASSES * ranks.world_size)  # a pass over all GPUs at once
    preset = preset._replace(micro=min(preset.micro if micro in (None, AUTO) else micro, most))
    if preset.micro < 1 or preset.rows % (PASSES * ranks.world_size * preset.micro):
        raise SystemExit(
            f"{preset.rows} rows a step are not {PASSES} passes of whole micro-batches of {preset.micro} rows on each of "
            f"{ranks.world_size} processes: change --rows or --micro"
        )
    steps = options.steps or (preset.quick_steps if options.quick else preset.steps)
    turns = options.turns or (2 if options.quick else 5)
    capability = torch.cuda.get_device_capability() if ranks.device.type == "cuda" else None
    precision = fit_precision({}, asked, ranks.device.type, capability)
    packs = capability is None or (capability >= (8, 0) and precision != "fp32")
    with tempfile.TemporaryDirectory() as temporary:
        case = Case(
            preset, precision, options.clock,
            modes=options.padding or ["free"] * packs + ["grouped"] + ["fixed"] * (not options.quick),
            stages=options.zero or [0 if precision == "fp32" else 1],
            teachers=options.teachers, scratch=Path(temporary),
        )  # fmt: skip
        write_mix(case.scratch / "mix", POOL, LONGEST, preset.config["vocab_size"])
        rows = Rows.of(case, ranks)
        known = list(dict(providers(case, rows)))
        if unknown := set(options.only or ()) - set(known):
            raise SystemExit(f"--only {min(unknown)}: there are {', '.join(known)}")
        wanted = [label for label in known if label in (options.only or known)]
        if micro == AUTO:
            preset = preset._replace(micro=automatic(rows, case.stages[0], case.modes[0], len(wanted)))
            case, rows = case._replace(preset=preset), rows._replace(preset=preset)
        every = dict(providers(case, rows))
        if ranks.device.type == "cpu" and ranks.world_size == 1:
            apart = {label: Apart(partial(provider_of, case, label), label) for label in wanted}
            every = {label: process.ready for label, process in apart.items()}
        span = range(1, 1 + turns * steps)
        heaviest = max(span, key=lambda step: rows.lengths(range(step, step + 1)).sum())
        # On a GPU every step once: torch's attention makes a plan for each shape that it has not seen, and so would the turns.
        warm = span if ranks.device.type == "cuda" else range(heaviest, heaviest + 1)
        made = {label: Measured.of(every[label], warm, span[-1]) for label in wanted}
        real, peak = rows.lengths(span), peak_flops(rows)
        facts = {
            "environment": environment(ranks.device)
            | {package: version(package) for package in ("transformers", "deepspeed", "accelerate")}
            | {"gpus" if capability else "processes": ranks.world_size},
            "precision": precision,
            "clock": options.clock,
            "rows per step": preset.rows,
            "micro-batch": preset.micro,
            "turns": turns,
            "steps per turn": steps,
            "mean tokens": float(real.mean()),
            "peak TFLOP/s": peak / 1e12,
        }
        for turn in range(turns):
            take_turn(turn, turns, steps, rows, made)
            done = rows.lengths(range(1, 1 + (turn + 1) * steps))
            found = facts | {
                "rows": table_rows(rows, made, done, peak, steps),
                "ratios": ratios({label: one.works for label, one in made.items()}),
            }
            tell(found)
        for one in made.values():
            if isinstance(one.provider, Apart):
                one.provider.close()
        return found


def take_turn(turn: int, turns: int, steps: int, rows: Rows, made: dict[str, Measured]) -> None:
    """Has each provider train on the steps of a turn, in an order that changes with it."""
    span = range(1 + turn * steps, 1 + (turn + 1) * steps)
    names = list(made)
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        rows.ranks.barrier()
        made[name].turn(span)
        print(f"turn {turn + 1}/{turns}: {name}: {made[name].works[-1].seconds:.2f} s", file=sys.stderr, flush=True)


def table_rows(
    rows: Rows, made: dict[str, Measured], real: np.ndarray, peak: float, steps: int
) -> list[dict[str, Any]]:
    """A row for each provider. real: tokens of each row trained on so far; peak: the device's operations per second."""
    found, preset = [], rows.preset
    works = {label: one.works for label, one in made.items()}
    for label, one in made.items():
        seconds = [work.seconds for work in one.works]
        rate = preset.rows * steps / median(seconds)
        rate_of_flops = rate * flops(preset.config, real) / len(real) / rows.ranks.world_size
        found.append({
            "provider": label,
            "examples/s": rate,
            "tokens/s": rate * float(real.mean()),
            "padding": 1 - float(real.sum()) / sum(work.computed for work in one.works),
            "TFLOP/s": rate_of_flops / 1e12,
            "of peak": rate_of_flops / peak,
            "peak GB": one.peak / 1e9 or None,
            **{f"{part} ms": value for part, value in one.split.items()},
            **against(works, label),
            "seconds per turn": seconds,
        })  # fmt: skip
    return found


def summary(found: dict[str, dict[str, Any]]) -> str:
    """All ratios in one line: median, least and most over the turns."""
    return "; ".join(
        f"{preset}: "
        + ", ".join(
            f"{name} {r['median']:.2f}x ({r['least']:.2f}-{r['most']:.2f})" for name, r in one["ratios"].items()
        )
        for preset, one in found.items()
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, action="append", help="may be given more than once")
    parser.add_argument("--padding", choices=("free", "grouped", "fixed"), action="append", help="ours, by padding")
    parser.add_argument("--zero", type=int, choices=range(4), action="append", help="ours, by ZeRO stage")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        action="append",
        help="of all; may be given more than once",
    )
    parser.add_argument("--teachers", type=int, default=0, help="ours with so many cached teachers, too")
    parser.add_argument("--only", metavar="PROVIDER", action="append", help="as the table names it")
    parser.add_argument("--turns", type=int, help="default 5; 2 with --quick")
    parser.add_argument("--steps", type=int, help="steps per turn")
    parser.add_argument("--rows", type=int, help="rows per step, over all GPUs")
    parser.add_argument(
        "--micro", type=lambda text: text if text == AUTO else int(text), action="append",
        help="rows per micro-batch and GPU, or auto; may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="fewer turns and steps, not fixed padding: within 4 minutes"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: this process's CPU time, where others use the cores too"
    )
    parser.add_argument("--json", type=Path, help="where to write, instead of results/<device>/bench_train.json")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    options = parser.parse_args(arguments)
    if not options.json and (options.only or options.rows or options.micro):
        parser.error("--only, --rows and --micro need --json FILE: the results kept are of the presets as they are")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if find_spec("accelerate") is None:
        raise SystemExit("Trainer needs accelerate: pip install -c constraints.txt -e '.[bench]'")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    ranks = Ranks.start()
    on_gpu = ranks.device.type == "cuda"
    path = options.json or folder(ranks.device) / "bench_train.json"
    found: dict[str, dict[str, Any]] = {}
    presets = options.preset or (["electra-base", "electra-large"] if on_gpu else ["tiny", "electra-small"])
    for name, precision, micro in product(presets, options.precision or ["auto"], options.micro or [None]):
        title = " ".join([name] + [precision] * (precision != "auto") + [f"{micro} micro-batch"] * (micro is not None))

        def tell(one: dict[str, Any], title: str = title) -> None:
            found[title] = one
            if ranks.rank == 0:  # what comes later may fail, or be stopped
                print(f"\n{title}\n\n{table(one['rows'], COLUMNS)}\n", flush=True)
                write_json(path, (json.loads(path.read_text()) if path.exists() else {}) | found)

        one = bench(name, precision, micro, options, ranks, tell)
        gc.collect()  # engines hold on to themselves
        torch.cuda.empty_cache()
        if ranks.rank == 0:
            print(json.dumps({key: value for key, value in one.items() if key not in ("rows", "ratios")}))
    if ranks.rank == 0:
        print(f"written to {path}")
        print(summary(found))
    ranks.leave()


if __name__ == "__main__":
    main()
