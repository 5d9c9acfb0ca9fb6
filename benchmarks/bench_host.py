"""What bookkeeping costs the host: a step of ours under each ZeRO stage beside a bare PyTorch loop, on a model so narrow that there
is little else; and our distillation loss without its kernels' launches beside eager PyTorch's.

    python benchmarks/bench_host.py                  # on any CPU, about two minutes
    python benchmarks/bench_host.py --precision bf16
    python benchmarks/bench_host.py --quick

An ELECTRA of 24 layers of width 32 with one head; a step is 8 micro-batches of 4 rows of 16 tokens, so nothing is padded. Both
sides run the same layers, dropout 0.1, clipping to 1, layer-wise rates on our side:

  bare loop       forward, backward; clip_grad_norm_, fused AdamW at one rate, gradients dropped
  ours, ZeRO N    the model, the guarded objective and the engine as road_ds.loop drives them

Each lives in a process of its own, on one thread, and is measured by that process's CPU time, so that neither the others nor
what else runs on the machine is counted. In every turn each does one step; a table's times are medians over turns, its ratios
medians of the ratios turn by turn. Operators are what is called from Python or by autograd, without what these call inside;
a wait is a value that the host asks a device for. Both are counted over one more step.

The loss is of 2 rows of 40 classes, forward and gradient, as a GPU's host would go through it: impl="triton", but nothing is
launched, and values in tensors are not looked at, which happens on a CPU alone. Eager PyTorch computes its 160 numbers.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from apart import Apart
from bench_kd_loss import TEMPERATURE, WEIGHT, Loss, Shape, eager, inputs
from measure import environment, folder, table
from road_kernels import arguments as checks
from road_kernels import kd_loss
from torch.nn import functional as F

from road_ds.common.log import write_json
from road_ds.common.ranks import Ranks
from road_ds.config.fit import fit_batch, fit_optimizer, fit_precision
from road_ds.config.road import ModelSpec, RateSettings
from road_ds.data.batch import Batch, Feature, collate
from road_ds.distillation.guard import Guarded
from road_ds.distillation.objective import Objective
from road_ds.engine.speed import fit_cpu
from road_ds.engine.start import start
from road_ds.loop import standing_objects_spared, step_engine
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import task_from

ROWS, MICRO, TOKENS = 32, 4, 16
LR, DECAY, LAYER_DECAY, CLIP = 1e-4, 0.01, 0.9, 1.0
MICRO_GOAL, STEP_GOAL, LOSS_GOAL = 1.10, 3.0, 0.5
CALLS = 100  # of each loss in a turn
OPERATORS = ("aten::", "c10d::")
WAIT = "aten::_local_scalar_dense"
FUSED = "aten::_fused_adamw_"  # which reads its step counter on a CPU alone
COLUMNS = [
    "provider", "micro-batch ms", "/ bare", "step ms", "/ bare step", "operators per micro-batch", "operators per step",
    "waits per micro-batch", "waits per step",
]  # fmt: skip
LOSS_COLUMNS = ["loss", "dtype", "teachers", "ours us", "eager us", "ours / eager"]


class Taken(NamedTuple):
    """CPU milliseconds of a turn: a micro-batch's forward and backward, the mean over a step's, and the step's own."""

    micro: float
    step: float


def narrow(layers: int) -> tuple[Any, Any]:
    """A multi-task model of one head, and its tokenizer."""
    config = {
        "embedding_size": 32, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    spec = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config=config)
    tokenizer = load_tokenizer(spec)
    tasks = {"mood": task_from({"type": "classification", "labels": ["a", "b", "c"], "max_length": 32}, "mood")}
    model = build_model(spec, tasks, tokenizer, dropout=0.1, seed=0)
    fit_cpu(model.encoder)
    return model, tokenizer


def batches() -> list[Batch]:
    """The micro-batches of a step."""
    generator = np.random.default_rng(0)
    rows = [
        Feature(generator.integers(5, 900, TOKENS), np.zeros(TOKENS), [int(generator.integers(3))], index)
        for index in range(ROWS)
    ]
    source = MemorySet("rows", rows)
    return [collate(source, list(range(first, first + MICRO)), 0) for first in range(0, ROWS, MICRO)]


class Provider:
    """Something that trains on a micro-batch, and steps."""

    micro: Callable[[Batch], None]
    step: Callable[[], Any]

    def __init__(self) -> None:
        self.batches = batches()

    def turn(self) -> Taken:
        """The times of one step."""
        began = time.process_time()
        for batch in self.batches:
            self.micro(batch)
        between = time.process_time()
        self.step()
        ended = time.process_time()
        return Taken(1e3 * (between - began) / len(self.batches), 1e3 * (ended - between))

    def counts(self) -> dict[str, float]:
        """Operators and waits of one step, by the columns of the table."""

        def pass_over() -> None:
            for batch in self.batches:
                self.micro(batch)

        micro = counted(pass_over)
        step = counted(self.step)
        found: dict[str, float] = {}
        for kind in ("operators", "waits"):
            found[f"{kind} per micro-batch"] = micro[kind] / len(self.batches)
            found[f"{kind} per step"] = step[kind]
        return found


def counted(work: Callable[[], Any]) -> dict[str, int]:
    """How many operators are called, those inside of others left out, and how often the host waits for a value."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    events = [event for event in profile.events() if event.name.startswith(OPERATORS)]
    waits = [event for event in events if event.name == WAIT and not inside(event, (FUSED,))]
    return {"operators": sum(not inside(event, OPERATORS) for event in events), "waits": len(waits)}


def inside(event: Any, names: tuple[str, ...]) -> bool:
    """Whether an operator was called by one of these, directly or not."""
    parent = event.cpu_parent
    return parent is not None and (parent.name.startswith(names) or inside(parent, names))


class Bare(Provider):
    """The least that a loop can do on these layers."""

    def __init__(self, layers: int, precision: str):
        super().__init__()
        model, _ = narrow(layers)
        head = model.head_model("mood", model.state_dict()).train()
        fit_cpu(head.base_model)
        half = precision != "fp32"
        if half:
            head.bfloat16()
        parameters = list(head.parameters())
        masters = [p.detach().float() for p in parameters] if half else parameters
        optimizer = torch.optim.AdamW(masters, lr=LR, weight_decay=DECAY, fused=True)

        def micro(batch: Batch) -> None:
            logits = head(input_ids=batch.input_ids, token_type_ids=batch.token_type_ids).logits
            (F.cross_entropy(logits.float(), batch.labels) / len(self.batches)).backward()

        def step() -> None:
            if half:
                for master, parameter in zip(masters, parameters, strict=True):
                    master.grad = parameter.grad.float()  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(masters, CLIP)
            optimizer.step()
            if half:
                with torch.no_grad():
                    torch._foreach_copy_(parameters, masters)
            for parameter in parameters:
                parameter.grad = None

        self.micro, self.step = micro, step


class Ours(Provider):
    """The same under the engine."""

    def __init__(self, layers: int, precision: str, stage: int):
        super().__init__()
        ds: dict[str, Any] = {
            "train_batch_size": ROWS,
            "train_micro_batch_size_per_gpu": MICRO,
            "optimizer": {"type": "AdamW", "params": {"lr": LR, "weight_decay": DECAY}},
            "gradient_clipping": CLIP,
            "zero_optimization": {"stage": stage},
        }
        ds |= fit_batch(ds, 1, 1)
        fit_precision(ds, precision, "cpu", None)
        fit_optimizer(ds, "cpu")
        model, _ = narrow(layers)
        Ranks.start()
        engine = self.engine = start(model, ds, RateSettings(layer_lr_decay=LAYER_DECAY), steps=10**6, seed=0)
        guarded = Guarded(Objective())
        self.spared = standing_objects_spared()
        self.spared.__enter__()

        def micro(batch: Batch) -> None:
            engine.backward(guarded(engine(batch, "mood"), None, batch, 0.0).total)
            if not engine.is_gradient_accumulation_boundary():
                step_engine(engine)

        self.micro, self.step = micro, partial(step_engine, engine)


def launched(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Our loss as on a GPU."""
    return kd_loss(student, teacher, labels, temperature=TEMPERATURE, weight=WEIGHT, impl="triton").total


class Losses:
    """Our loss without launches, and eager PyTorch's, on the same logits."""

    def __init__(self, teachers: int, dtype: torch.dtype):
        self.student, self.teacher, self.labels = inputs(Shape(2, 40, teachers), dtype, torch.device("cpu"), seed=0)

    def turn(self) -> tuple[float, float]:
        """CPU microseconds of a call and its gradient: ours, eager's."""
        from road_kernels.launch import Launch

        with (
            patch.object(Launch, "__call__", lambda launch, *given: None),
            patch.object(checks, "INTERPRETING", True),
            patch.object(checks, "check_values", lambda *ranges: None),
        ):
            ours = self._timed(launched)
        return ours, self._timed(eager)

    def _timed(self, loss: Loss) -> float:
        upstream = torch.ones(())
        began = time.process_time_ns()
        for _ in range(CALLS):
            torch.autograd.grad(loss(self.student, self.teacher, self.labels), self.student, upstream)
        return (time.process_time_ns() - began) / CALLS / 1e3


def losses(turns: int) -> list[dict[str, Any]]:
    """The rows of the losses' table: a dtype and a number of teachers each."""
    rows = []
    for dtype in (torch.float16, torch.float32):
        for teachers in (1, 3):
            name = f"kd_loss, {dtype}, {teachers}"
            made = Apart(partial(Losses, teachers, dtype), name).ready()
            made.ask("turn")  # not counted: launches are planned
            taken = [made.ask("turn") for _ in range(turns)]
            made.close()
            rows.append({
                "loss": "kd_loss", "dtype": str(dtype).removeprefix("torch."), "teachers": teachers,
                "ours us": median(ours for ours, _ in taken), "eager us": median(other for _, other in taken),
                "ours / eager": median(ours / other for ours, other in taken),
            })  # fmt: skip
    return rows


def makers(layers: int, precision: str) -> dict[str, Callable[[], Provider]]:
    """Every provider's name and how to make it."""
    stages = range(4) if precision == "fp32" else range(1, 4)
    ours = {f"ours, ZeRO {stage}": partial(Ours, layers, precision, stage) for stage in stages}
    return {"bare loop": partial(Bare, layers, precision), **ours}


def measured(layers: int, precision: str, turns: int) -> list[dict[str, Any]]:
    """The table's rows."""
    made = {name: Apart(make, name) for name, make in makers(layers, precision).items()}
    names = list(made)
    for name in names:
        made[name].ready()
    for name in names:
        for _ in range(3):
            made[name].ask("turn")  # not counted: memory grows, optimizers make their moments
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(made[name].ask("turn"))
    rows = []
    for name in names:
        pairs = list(zip(taken[name], taken["bare loop"], strict=True))
        rows.append({
            "provider": name,
            "micro-batch ms": median(own.micro for own, _ in pairs),
            "/ bare": median(own.micro / bare.micro for own, bare in pairs),
            "step ms": median(own.step for own, _ in pairs),
            "/ bare step": median(own.step / bare.step for own, bare in pairs),
            **made[name].ask("counts"),
        })  # fmt: skip
        made[name].close()
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--quick", action="store_true", help="5 turns")
    parser.add_argument("--json", type=Path, help="where to write, instead of results/cpu/bench_host.json")
    options = parser.parse_args(arguments)
    os.environ["DS_ACCELERATOR"], os.environ["OMP_NUM_THREADS"] = "cpu", "1"
    rows = measured(options.layers, options.precision, 5 if options.quick else options.turns)
    device = torch.device("cpu")
    path = options.json or folder(device) / (
        "bench_host.json" if options.precision == "fp32" else "bench_host_bf16.json"
    )
    beside = losses(5 if options.quick else options.turns) if checks.TRITON else []
    busy = round(os.getloadavg()[0], 1)
    found = {
        "environment": environment(device) | {"deepspeed": version("deepspeed"), "threads": 1, "load": busy},
        "precision": options.precision,
        "layers": options.layers,
        "rows": rows,
        "losses": beside,
    }
    print(table(rows, COLUMNS))
    print(table(beside, LOSS_COLUMNS) if beside else "no losses: Triton is not installed")
    print(
        f"goals: forward and backward {MICRO_GOAL} times the bare loop's, a step {STEP_GOAL} times, a loss {LOSS_GOAL} times "
        f"eager's; load {busy}"
    )
    write_json(path, found)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
