"""What a new shape of a batch costs on a GPU: torch's attention by its kernels, the first call of a shape beside those that follow.

    python benchmarks/bench_attention.py --output FOLDER

Forward and backward pass, bf16, dropout, a mask of padded rows, electra-large's 16 heads of 64, 128 rows. "cuDNN" is torch's first choice on
Hopper and newer; ours leaves it out (`models/attention.py`). "packed" is the kernel of free padding, on rows without padding.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import environment, table, wait
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from road_ds.common.log import write_json
from road_ds.data.packing import Packing
from road_ds.models.attention import _by_kernel, _by_runs

KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH}
COLUMNS = ["kernel", "rows", "tokens", "first ms", "ms"]


def passes(kernel: str, rows: int, tokens: int, device: torch.device) -> Callable[[], None]:
    """A forward and a backward pass by a kernel; half of the rows are padded by a quarter."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    dropout = 0.1 if device.type == "cuda" else 0.0
    lengths = torch.tensor([tokens, tokens - tokens // 4] * (rows // 2), device=device)
    if kernel == "packed":
        packing = Packing.of(lengths.cpu().numpy(), tokens).map(lambda tensor: tensor.to(device))
        flat = [torch.randn(int(lengths.sum()), 16, 64, device=device, dtype=dtype) for _ in range(3)]
        inside = _by_kernel if device.type == "cuda" else _by_runs

        def packed() -> None:
            parts = [part.detach().requires_grad_() for part in flat]
            inside(parts, packing, reach=None, dropout=dropout, scaling=None).sum().backward()

        return packed
    mask = (torch.arange(tokens, device=device) < lengths[:, None])[:, None, None]
    mask = mask.expand(-1, 1, tokens, tokens).contiguous()
    whole = [torch.randn(rows, 16, tokens, 64, device=device, dtype=dtype) for _ in range(3)]

    def padded() -> None:
        query, key, value = (part.detach().requires_grad_() for part in whole)
        with sdpa_kernel(KERNELS[kernel]):
            found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        found.sum().backward()

    return padded


def measured(kernel: str, rows: int, tokens: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """A row of the table: milliseconds of the first call of this shape, and the mean of those that follow."""
    work, taken = passes(kernel, rows, tokens, device), []
    for count in (1, repeats):
        wait(device)
        began = time.perf_counter()
        for _ in range(count):
            work()
        wait(device)
        taken.append(1e3 * (time.perf_counter() - began) / count)
    return {"kernel": kernel, "rows": rows, "tokens": tokens, "first ms": taken[0], "ms": taken[1]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--tokens", type=int, action="append", help="may be given more than once")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kernels = [*KERNELS, "packed"] if device.type == "cuda" else ["math", "packed"]
    for kernel in kernels:
        measured(kernel, 2, 16, device, 1)  # what each kernel takes once
    lengths = options.tokens or [32, 48, 128, 256, 384]
    found = [
        measured(kernel, options.rows, tokens, device, options.repeats) for tokens in lengths for kernel in kernels
    ]
    print(table(found, COLUMNS))
    write_json(options.output / "bench_attention.json", {"environment": environment(device), "rows": found})


if __name__ == "__main__":
    main()
