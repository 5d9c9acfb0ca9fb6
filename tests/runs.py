"""Tiny runs for tests, through the real launcher."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_ELECTRA = {
    "embedding_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
    "initializer_range": 0.1,
}


def tiny_config(**road) -> dict:
    """A run of seconds over four data sets of the embedded sample and three heads; `road` overrides its block."""
    sample = json.loads((ROOT / "ds_configs" / "mtl.json").read_text())["road"]
    datasets = {
        name: {**sample["datasets"][name], "max_rows": 60} for name in ("places", "people", "inference", "paraphrase")
    }
    tasks = {name: sample["tasks"][name] for name in ("qa", "inference", "paraphrase")}
    return {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "zero_optimization": {"stage": 0},
        "road": {
            "model": {"architecture": "electra", "tokenizer": "sample:tokenizer", "config": TINY_ELECTRA},
            "tasks": tasks,
            "datasets": datasets,
            "steps": 5,
            "passes": 3,
            "warmup": 0,
            "schedule": "constant",
            "dropout": 0.0,
            "save_every": 0,
            "keep": 2,  # a finished run keeps them
            "precision": "fp32",
            **road,
        },
    }


def pretraining(text: Path, task: dict | None = None, mixed: bool = True, **road) -> dict:
    """A run of seconds over text, and beside it a labelled data set."""
    config = tiny_config(**{"steps": 4, "passes": 2, **road})
    settings, kept = config["road"], ["inference"] if mixed else []
    config["train_batch_size"] = 16
    own = {"type": "replaced_tokens", "max_length": 64, "generator": 0.5, **(task or {})}
    settings["tasks"] = {name: settings["tasks"][name] for name in kept} | {"text": own}
    settings["datasets"] = {name: settings["datasets"][name] for name in kept}
    settings["datasets"]["text"] = {"task": "text", "train": str(text), "dev": 0.2}
    return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process: CPU, one thread, no launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in launcher}
    return {**kept, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def launch(script: str | Path, *arguments: str, ranks: int = 1, timeout: float = 240) -> subprocess.CompletedProcess:
    """Runs a script through the `deepspeed` launcher."""
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    return subprocess.run(
        [deepspeed, "--num_gpus", str(ranks), "--master_port", str(free_port()), str(script), *map(str, arguments)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def run_python(*arguments: str, timeout: float = 240, **more: str) -> subprocess.CompletedProcess:
    """Runs this interpreter on a script or module."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(**more), capture_output=True, text=True, timeout=timeout)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def error_of(result: tuple[int, str, str]) -> str:
    """The message of a command that ended with 2 and one readable error."""
    code, out, err = result
    lines = [line.rpartition("\r")[2] for line in err.split("\n") if not line.startswith("usage: ")]
    assert code == 2 and out == "" and "Traceback" not in err, err
    return "\n".join(lines).strip()
