"""Linear layers in float32 on a CPU that PyTorch's MKL computes at half its width.

MKL keeps AVX-512 for Intel's processors; oneDNN, which PyTorch has too, uses it on any (docs/performance.md). It gains nothing on
AMD's Zen 4, which computes 512 bits in two halves.
"""

import re
from pathlib import Path

import torch
from torch import nn

from road_ds.models.exchange import exchange

LEAST = (
    2**22
)  # multiplications; with 16 x 64 x 64 the copies make a layer 4 times slower, with 200 x 256 x 256 it is faster
INTEL, ZEN4 = "GenuineIntel", "25"  # as a maker, and as a family of processors that have AVX-512


def mkl_is_slow(processors: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has AVX-512 of full width that MKL leaves unused; not where its maker cannot be read."""
    backends = torch.backends
    if not (backends.mkl.is_available() and backends.mkldnn.is_available()):
        return False
    try:
        text = processors.read_text()
    except OSError:
        return False
    found = dict(re.findall(r"^(vendor_id|cpu family)\s*: (.*)$", text, re.MULTILINE))
    others = found.get("vendor_id", INTEL) != INTEL and found.get("cpu family") != ZEN4
    return others and backends.cpu.get_cpu_capability() == "AVX512"


class Linear(nn.Linear):
    """torch's layer, its larger float32 products by oneDNN. A copy of its input is kept for the backward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or input.dtype != torch.float32 or input.numel() * self.out_features < LEAST:
            return super().forward(input)
        # By its own name: ZeRO 3 puts a function in the place of F.linear that takes plain tensors only.
        return torch.ops.aten.mkldnn_linear(input.to_mkldnn(), self.weight, self.bias).to_dense()

    @classmethod
    def of(cls, layer: nn.Linear) -> "Linear":
        """The layer on the very same weights."""
        own = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        own.weight, own.bias = layer.weight, layer.bias
        return own.train(layer.training)


def replace_linear(model: nn.Module) -> int:
    """How many of torch's linear layers in a model now are those above."""
    return exchange(model, nn.Linear, Linear.of)
