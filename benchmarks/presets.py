"""The models of the training benchmark, and a run's settings over the paper's four tasks and nine sets."""

from __future__ import annotations

from typing import Any, NamedTuple

from length_mix import CLASSES, MIX

from road_ds.config.road import RoadConfig
from road_ds.models.configuration import load_tokenizer

LONGEST = 384
DROPOUT = 0.1
PASSES = 4
LAYER_DECAY = 0.75


class Preset(NamedTuple):
    """A model and how its rows are cut: rows per step over all GPUs, rows per micro-batch, steps per turn."""

    config: dict[str, Any]
    rows: int
    micro: int
    steps: int
    quick_steps: int


def electra(embedding: int, hidden: int, layers: int, heads: int, vocabulary: int = 30522) -> dict[str, Any]:
    return {
        "embedding_size": embedding,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
    }


LARGE = electra(1024, 1024, 24, 16)
PRESETS = {
    "tiny": Preset(electra(128, 128, 2, 4, 1066), rows=64, micro=16, steps=10, quick_steps=3),
    "electra-small": Preset(electra(128, 256, 12, 4), rows=32, micro=8, steps=4, quick_steps=1),
    "electra-base": Preset(electra(768, 768, 12, 12), rows=512, micro=128, steps=10, quick_steps=2),
    "electra-large": Preset(LARGE, rows=512, micro=32, steps=5, quick_steps=1),
    "paper": Preset(LARGE, rows=512, micro=16, steps=10, quick_steps=2),
}


def weights_of(config: dict[str, Any]) -> int:
    """Parameters of the matrices between embeddings and heads, with the one that widens the embeddings."""
    hidden = config["hidden_size"]
    embedding = config.get("embedding_size", hidden)
    layers = config["num_hidden_layers"] * (4 * hidden**2 + 2 * hidden * config["intermediate_size"])
    return layers + (embedding * hidden if embedding != hidden else 0)


def tokenizer_of(config: RoadConfig) -> Any:
    """The sample's tokenizer, with an entry for each row of a preset's embedding: rows are ids, nothing is tokenized."""
    tokenizer = load_tokenizer(config.model)
    tokenizer.add_tokens([f"[{at}]" for at in range(len(tokenizer), config.model.config["vocab_size"])])
    return tokenizer


def bench_config(preset: Preset) -> RoadConfig:
    """The road block of the runs: the four tasks of the paper over the nine sets."""
    tasks: dict[str, dict[str, Any]] = {"mrc": {"type": "span_qa", "max_length": LONGEST}}
    for name, classes in CLASSES.items():
        labels = [str(label) for label in range(classes)]
        tasks[name] = {"type": "classification", "labels": labels, "max_length": LONGEST}
    model = {"architecture": "electra", "tokenizer": "sample:tokenizer", "config": preset.config}
    datasets = {name: {"task": mixed.task, "train": "unused"} for name, mixed in MIX.items()}
    return RoadConfig.model_validate(
        {
            "model": model,
            "tasks": tasks,
            "datasets": datasets,
            "steps": 10**6,
            "passes": PASSES,
            "dropout": DROPOUT,
            "layer_lr_decay": LAYER_DECAY,
        }
    )
