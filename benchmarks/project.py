"""From one GPU's measured rate to many GPUs and hosts, and the memory that each needs: a model, not a measurement.

    python benchmarks/project.py --preset electra-large --rate 74 --gpus 8 --machine v100
    python benchmarks/project.py --rate 300 --gpus 16 --hosts 2 --zero 3 --machine h200

The model, of one optimizer step:
  compute      the rows of a step over GPUs, at the measured rate of one GPU
  gradients    a ring moves 2 (n - 1) / n of the gradients past the slowest link. ZeRO 0 and 1: once a step; ZeRO 2: as much
               with every micro-batch (DeepSpeed reduces whole buckets there too). Hidden behind nothing: overlap_comm is off
  weights      ZeRO 1 and 2 gather the updated weights once a step, hidden behind nothing; ZeRO 3 scatters gradients and
               gathers weights twice with every micro-batch, hidden behind its computation
  optimizer    Adam reads and writes 28 bytes per parameter (half of it more in half precision), over GPUs from ZeRO 1
  what is hidden never costs less than nothing; hosts, launches and stragglers cost nothing: the true rate is below

One rate stands for other lengths by the work of a row: 6 operations per weight and token, and 12 per layer, width and pair of
tokens for the attention, which count ATTENTION times: they run that much slower than matrix products. That one factor is
fitted to public figures of BERT-large on a V100, which it gives back within 5 % (see PUBLIC).
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any, NamedTuple

from measure import table
from presets import PRESETS, weights_of

from road_ds.engine.memory import activations, memory, readable

ATTENTION = 6.5  # operations of a matrix product in the time of one of attention's
PUBLIC = {  # sequences/s of BERT-large on one V100, at 128 and at 512 tokens: 2020, kernels of their time
    "NVIDIA": (163, 29),
    "DeepSpeed": (272, 52),
}
BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "vocab_size": 30522}


class Machine(NamedTuple):
    """Data sheets, bytes per second: a GPU's memory, its links inside a host, a host's share of the network per GPU."""

    memory: float
    inside: float
    between: float
    capacity: float  # bytes of memory


MACHINES = {
    "v100": Machine(memory=0.9e12, inside=130e9, between=1.5e9, capacity=32 * 2**30),
    "a100": Machine(memory=2.0e12, inside=250e9, between=25e9, capacity=80 * 2**30),
    "h200": Machine(memory=4.8e12, inside=400e9, between=50e9, capacity=141e9),
}


class Step(NamedTuple):
    """Seconds of one optimizer step, and the rows per second that follow."""

    compute: float
    gradients: float
    weights: float
    optimizer: float
    rate: float


def parameters_of(config: dict[str, Any]) -> int:
    """Parameters of matrices and word embeddings: biases, norms and heads are below 1 %."""
    return weights_of(config) + config["vocab_size"] * config.get("embedding_size", config["hidden_size"])


def work(config: dict[str, Any], tokens: int) -> float:
    """What forward and backward of one row cost, in operations of a matrix product."""
    pairs = 12 * config["num_hidden_layers"] * config["hidden_size"] * tokens**2
    return 6 * weights_of(config) * tokens + ATTENTION * pairs


def at_length(config: dict[str, Any], rate: float, tokens: int, wanted: int) -> float:
    """The rate at another length, from the rate at `tokens`."""
    return rate * work(config, tokens) / work(config, wanted)


def project(
    parameters: int,
    rate: float,
    machine: Machine,
    *,
    rows: int,
    micro: int,
    gpus: int,
    hosts: int,
    stage: int,
    half: bool,
) -> Step:
    """One step on `gpus` GPUs over `hosts` hosts, from the rows per second of one."""
    pieces = rows / (micro * gpus)
    compute = rows / (gpus * rate)
    link = machine.between if hosts > 1 else machine.inside
    size = parameters * (2 if half else 4)
    once = (gpus - 1) / gpus * size / link  # a scatter or a gather; a reduction is both
    shown = pieces * max(0.0, 3 * once - compute / pieces)  # of ZeRO 3: one link for all three
    gradients = [2 * once, 2 * once, pieces * 2 * once, shown / 3][stage]
    weights = [0.0, once, once, shown * 2 / 3][stage]
    adam = parameters * (28 + 14 * half) / machine.memory / (gpus if stage else 1)
    return Step(compute, gradients, weights, adam, rows / (compute + gradients + weights + adam))


def memory_of(
    parameters: int, config: dict[str, Any], *, tokens: int, gpus: int, half: bool, checkpointing: bool = False
) -> list[dict[str, Any]]:
    """Bytes per GPU by ZeRO stage, as a dictionary a stage; tokens: of a micro-batch.

    Offloaded, float32 weights and Adam's moments lie in the host's memory (ZeRO-Offload; DeepSpeed has it from stage 1).
    """
    precision = "bf16" if half else "fp32"
    kept = tokens * activations(SimpleNamespace(**config), precision, checkpointing)
    held = memory(parameters, gpus, precision)
    mine = (2 if half else 4) * parameters
    offloaded = [None, 2 * mine, mine + mine / gpus, 2 * mine / gpus]
    return [
        {
            "ZeRO": stage,
            "weights, gradients, Adam": held[stage],
            "with Adam offloaded": offloaded[stage],
            "activations": kept,
            "in all": held[stage] + kept,
        }
        for stage in range(4)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="electra-large")
    parser.add_argument(
        "--rate", type=float, required=True, help="rows per second of one GPU, measured (bench_train.py)"
    )
    parser.add_argument("--rows", type=int, default=512, help="rows per step")
    parser.add_argument("--micro", type=int, default=16, help="rows per micro-batch and GPU")
    parser.add_argument("--tokens", type=int, default=384, help="tokens of the longest row, for the memory")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--machine", choices=MACHINES, default="v100")
    options = parser.parse_args(arguments)
    print("The model" + (__doc__ or "").partition("The model")[2])
    config, machine = PRESETS[options.preset].config, MACHINES[options.machine]
    parameters = parameters_of(config)
    print(f"{options.preset}: {parameters / 1e6:.0f} M parameters; {options.machine}: {machine}\n")
    rows = []
    for stage in range(4):
        step = project(
            parameters, options.rate, machine,
            rows=options.rows, micro=options.micro, gpus=options.gpus, hosts=options.hosts, stage=stage, half=True,
        )  # fmt: skip
        times = {f"{name} ms": 1e3 * value for name, value in step._asdict().items() if name != "rate"}
        efficiency = step.rate / (options.gpus * options.rate)
        rows.append({"ZeRO": stage, **times, "rows/s": step.rate, "of linear": efficiency})
    print(table(rows, list(rows[0])))
    print()
    sizes = memory_of(parameters, config, tokens=options.micro * options.tokens, gpus=options.gpus, half=True)
    shown = [
        {key: value if key == "ZeRO" or value is None else readable(value) for key, value in row.items()}
        for row in sizes
    ]
    print(table(shown, list(shown[0])))


if __name__ == "__main__":
    main()
