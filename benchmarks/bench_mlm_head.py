"""Memory of a masked language model's head: logits of masked tokens alone or of all, whole or a chunk at a time.

    python benchmarks/bench_mlm_head.py                  # electra-small's, on any CPU
    python benchmarks/bench_mlm_head.py --rows 128

One forward and backward pass of the output layer of 30,522 entries behind states of width 128, float32, rows of 128 tokens, 15 % masked,
each way in a process of its own: the most memory that the process had during the pass, beyond what it had before. Ours draws its samples too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from apart import Apart, resident
from measure import environment, folder, table
from road_kernels import linear_kd_loss
from torch.nn import functional as F

from road_ds.common.log import write_json
from road_ds.data.batch import IGNORED
from road_ds.data.masking import Masking, blocks_of, gumbel, masked_count
from road_ds.models.generator import Vocabulary

TOKENS, SHARE, WIDTH, ENTRIES = 128, 0.15, 128, 30522
COLUMNS = ["rows", "head", "logits MB", "memory MB", "seconds"]


class Head:
    """The states of a micro-batch, and the layer behind them."""

    def __init__(self, way: str, rows: int):
        self.way, self.rows, generator = way, rows, np.random.default_rng(0)
        count = int(masked_count(TOKENS, SHARE))
        own = [np.sort(generator.permutation(TOKENS)[:count]) + i * TOKENS for i in range(rows)]
        self.places = torch.from_numpy(np.concatenate(own))
        self.labels = torch.from_numpy(generator.integers(0, ENTRIES, rows * TOKENS))
        self.ignoring = torch.full_like(self.labels, IGNORED).index_copy(0, self.places, self.labels[self.places])
        noise = torch.from_numpy(gumbel((len(self.places), sum(blocks_of(ENTRIES))), generator))
        self.masking = Masking(self.places, self.labels[self.places], noise, ENTRIES, 1.0, 1.0)
        self.states = torch.randn(rows * TOKENS, WIDTH, requires_grad=True)
        weight, bias = torch.nn.Parameter(torch.randn(ENTRIES, WIDTH)), torch.nn.Parameter(torch.zeros(ENTRIES))
        self.layer = Vocabulary(weight, bias).train()

    def measure(self) -> dict[str, Any]:
        """Bytes that a pass adds to the process, and its seconds."""
        Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
        before, began = resident(), time.perf_counter()
        WAYS[self.way](self).backward()
        seconds = time.perf_counter() - began
        tokens = self.rows * TOKENS if "all" in self.way else len(self.places)
        return {
            "rows": self.rows, "head": self.way, "logits MB": 4e-6 * tokens * ENTRIES,
            "memory MB": (resident() - before) / 1e6, "seconds": seconds,
        }  # fmt: skip


def everywhere(head: Head) -> torch.Tensor:
    """As transformers' own: logits of all tokens, a loss at the masked ones."""
    logits = F.linear(head.states, head.layer.weight, head.layer.bias)
    return F.cross_entropy(logits, head.ignoring, reduction="sum")


def everywhere_in_chunks(head: Head) -> torch.Tensor:
    found = linear_kd_loss(
        head.states,
        head.layer.weight,
        head.ignoring,
        bias=head.layer.bias,
        temperature=1.0,
        weight=0.0,
        reduction="sum",
    )
    return found.total


def masked(head: Head) -> torch.Tensor:
    logits = F.linear(head.states.index_select(0, head.places), head.layer.weight, head.layer.bias)
    return F.cross_entropy(logits, head.labels[head.places], reduction="sum")


def ours(head: Head) -> torch.Tensor:
    states = head.states.index_select(0, head.places)
    return head.layer(states, head.labels[head.places], head.masking)[0]


WAYS: dict[str, Callable[[Head], torch.Tensor]] = {
    "all tokens": everywhere,
    "all tokens, in chunks": everywhere_in_chunks,
    "masked tokens": masked,
    "masked tokens, in chunks (ours)": ours,
}


def measured(way: str, rows: int) -> dict[str, Any]:
    """The table's row of one way."""
    apart = Apart(partial(Head, way, rows), way).ready()
    found = apart.ask("measure")
    apart.close()
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=" ".join((__doc__ or "").split("\n\n")[0].split()))
    parser.add_argument("--rows", type=int, action="append", help="of a micro-batch; by default 16 and 128")
    parser.add_argument("--json", type=Path, help="where to write, instead of results/cpu/bench_mlm_head.json")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = [measured(way, count) for count in options.rows or (16, 128) for way in WAYS]
    device = torch.device("cpu")
    path = options.json or folder(device) / "bench_mlm_head.json"
    print(table(rows, COLUMNS))
    write_json(path, {"environment": environment(device) | {"threads": 1}, "rows": rows})
    print(f"written to {path}")


if __name__ == "__main__":
    main()
