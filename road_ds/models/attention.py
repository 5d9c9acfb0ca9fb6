"""Attention inside the rows of a packed sequence, on a CPU and a GPU, for every encoder of transformers."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from road_ds.data.packing import Packing
from road_ds.models.dropout import dropout as drop

ATTENTION = "road_packed"  # the name under which transformers finds the functions below


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


def plan_no_shapes() -> None:
    """Leaves cuDNN's attention out of torch's, in this process: it makes a plan for every new shape of a batch.

    A plan takes the host some 85 ms on an H200, forward and backward, and rows padded to the longest come in dozens of shapes.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


AttentionInterface.register(ATTENTION, attention)


AttentionMaskInterface.register(ATTENTION, attention_mask)


def unpack_output(module: nn.Module, inputs: Any, settings: dict[str, Any], output: Any) -> Any:
    """A forward hook: what a stack of layers returned, its last hidden state padded again where it was packed."""
    packing = settings.get("packing")
    if packing is not None:
        output["last_hidden_state"] = packing.unpack(output["last_hidden_state"])
    return output
