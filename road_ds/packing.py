"""Packed rows: the rows of a batch one after another in one sequence, attention only inside a row, nothing padded.

transformers' attention interface carries it: every layer that works token by token sees one long row, and the attention
function registered here sees where the rows begin. Token ids go in packed, hidden states come out padded again.
"""

from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from road_ds.dropout import dropout as drop

ATTENTION = "road_packed"  # the name under which transformers finds the functions below
SCORES = 2**17  # attention scores per head that one call on a CPU computes: what stays in its cache


@dataclass(frozen=True)
class Packing:
    """Where the rows of a padded batch lie in the packed sequence.

    The numbers that shapes depend on are known to the host: using them never waits for the device.
    """

    index: torch.Tensor  # [tokens] the place of each packed token in the flattened padded batch
    positions: torch.Tensor  # [1, tokens] its place in its row, from 0
    bounds: torch.Tensor  # [rows + 1] int32, where each row begins and the last one ends
    shape: tuple[int, int]  # rows, width of the padded batch
    longest: int
    runs: tuple[tuple[int, int], ...]  # (rows, length) of neighbours that have the same length

    @classmethod
    def of(cls, lengths: np.ndarray, width: int) -> "Packing":
        """The packing of rows of these lengths that are padded to `width`."""
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(bounds[-1]) - np.repeat(bounds[:-1], lengths)
        index = positions + np.repeat(np.arange(len(lengths)) * width, lengths)
        runs: list[tuple[int, int]] = []
        for length, same in groupby(lengths.tolist()):
            rows, most = len(list(same)), max(1, SCORES // length**2)
            runs += [(min(most, rows - first), length) for first in range(0, rows, most)]
        return cls(
            index=torch.from_numpy(index),
            positions=torch.from_numpy(positions)[None],
            bounds=torch.from_numpy(bounds.astype(np.int32)),
            shape=(len(lengths), width),
            longest=int(lengths.max()),
            runs=tuple(runs),
        )

    @property
    def sizes(self) -> list[int]:
        """Tokens in each run."""
        return [rows * length for rows, length in self.runs]

    def map(self, change: Any) -> "Packing":
        """The same packing with every tensor changed, for example moved."""
        tensors: dict[str, Any] = {f.name: v for f in fields(self) if torch.is_tensor(v := getattr(self, f.name))}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[rows, width] -> [1, tokens]."""
        return padded.flatten().index_select(0, self.index)[None]

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """[1, tokens, hidden] -> [rows, width, hidden], zero where there is no token."""
        rows, width = self.shape
        padded = packed.new_zeros(rows * width, packed.shape[-1])
        return padded.index_copy(0, self.index, packed[0]).view(rows, width, -1)


def attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The values that every token attends to, [batch, tokens, heads, head size]; scaled dot product, in both directions.

    query, key, value: [batch, heads, tokens, head size]; with a packing, batch is 1 and a token attends inside its row.
    sliding_window: as transformers gives it, one more than the distance up to which a token attends.
    """
    reach = None if sliding_window is None else sliding_window - 1
    if packing is None:
        found = _attend(query, key, value, attention_mask, reach=reach, dropout=dropout, scaling=scaling)
        return found.transpose(1, 2).contiguous(), None
    parts = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]  # [tokens, heads, head size]
    inside = _by_kernel if query.is_cuda else _by_runs
    return inside(parts, packing, reach=reach, dropout=dropout, scaling=scaling)[None], None


def _by_kernel(
    parts: list[torch.Tensor], packing: Packing, *, reach: int | None, dropout: float, scaling: float | None
) -> torch.Tensor:
    """Attention inside rows of any length in one kernel, [tokens, heads, head size]; half precision on a GPU.

    torch.nn.attention.varlen is this operator without its dropout.
    """
    size = parts[0].shape[-1]
    if size % 8:  # the kernel refuses it; zeros change no score
        parts = [F.pad(part, (0, -size % 8)) for part in parts]
    return torch.ops.aten._flash_attention_forward(
        *parts, packing.bounds, packing.bounds, packing.longest, packing.longest, dropout, False, False,
        scale=scaling or size**-0.5, window_size_left=reach, window_size_right=reach,
    )[0][..., :size]  # fmt: skip


def _by_runs(
    parts: list[torch.Tensor], packing: Packing, *, reach: int | None, dropout: float, scaling: float | None
) -> torch.Tensor:
    """The same on a CPU: one call for each run of rows of one length."""
    found = []
    for (rows, length), *run in zip(packing.runs, *(part.split(packing.sizes) for part in parts), strict=True):
        padded = (part.view(rows, length, *part.shape[1:]).transpose(1, 2) for part in run)
        found.append(_attend(*padded, reach=reach, dropout=dropout, scaling=scaling).transpose(1, 2).flatten(0, 1))
    return torch.cat(found)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    reach: int | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Attention among rows of one length; without a mask all tokens are real and only the reach limits it."""
    length = query.shape[2]
    if mask is None and reach is not None and length > reach + 1:
        at = torch.arange(length, device=query.device)
        mask = (at[:, None] - at).abs() <= reach
    if dropout > 0 and query.device.type == "cpu":
        # The call below draws its random numbers one by one on a CPU, and looks for rows that are masked as a whole.
        # As there, and in a GPU's kernel, scores and softmax are float32 whatever the precision.
        scores = torch.matmul(query.float() * (scaling or query.shape[-1] ** -0.5), key.float().transpose(2, 3))
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return torch.matmul(drop(scores.softmax(-1), dropout).to(value.dtype), value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)


def attention_mask(*, attention_mask: torch.Tensor | None, allow_is_bidirectional_skip: bool = False, **kwargs: Any):
    """The mask of padded rows, [batch, 1, tokens, tokens]; None where no token is padding.

    transformers would look for padding in the mask itself and so wait for the device in every forward pass.
    """
    if attention_mask is None:
        return None
    return sdpa_mask(attention_mask=attention_mask, allow_is_bidirectional_skip=False, **kwargs)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)


def unpack_output(module: nn.Module, inputs: Any, settings: dict[str, Any], output: Any) -> Any:
    """A forward hook: what a stack of layers returned, its last hidden state padded again where it was packed."""
    packing = settings.get("packing")
    if packing is not None:
        output["last_hidden_state"] = packing.unpack(output["last_hidden_state"])
    return output
