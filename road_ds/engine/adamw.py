"""AdamW whose learning rate differs along its tensors: layer-wise rates over the few flat tensors that an engine keeps."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch.optim import AdamW


class Piece(NamedTuple):
    """A run of a flat tensor's elements: the first one, the one behind the last, and their share of the group's rate."""

    start: int
    stop: int
    share: float


class LayerwiseAdamW(AdamW):
    """torch's fused AdamW, its state as it is there. `pieces` says which elements take which share of their group's rate.

    An update is one fused operation for each group and share, however many tensors there are. Every tensor with a
    gradient needs its pieces (KeyError); elements that are in none stay as they are: padding.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **settings: Any):
        super().__init__(groups, fused=True, **settings)
        self.pieces: Mapping[torch.Tensor, list[Piece]] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Updates every tensor that has a gradient."""
        for group in self.param_groups:
            columns: list[list[torch.Tensor]] = [[] for _ in range(6)]
            self._init_group(group, *columns)
            parameters, gradients, means, squares, _, steps = columns
            if not parameters:
                continue
            torch._foreach_add_(steps, 1)
            by_share: dict[float, list[tuple[torch.Tensor, ...]]] = {}
            for parameter, *rest, step in zip(parameters, gradients, means, squares, steps, strict=True):
                for piece in self.pieces[parameter]:
                    row = (*(cut(tensor, piece) for tensor in (parameter, *rest)), step)
                    by_share.setdefault(piece.share, []).append(row)
            beta1, beta2 = group["betas"]
            for share, rows in by_share.items():
                own, slopes, first, second, counted = (list(column) for column in zip(*rows, strict=True))
                torch._fused_adamw_(
                    own, slopes, first, second, [], counted,
                    lr=group["lr"] * share, beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
                    eps=group["eps"], amsgrad=False, maximize=False,
                )  # fmt: skip


def cut(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The elements of a piece, as a view; the tensor itself where they are all."""
    if piece.stop - piece.start == tensor.numel():
        return tensor
    return tensor.view(-1)[piece.start : piece.stop]


def merged(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbouring pieces of one share as one."""
    found = []
    for share, same in groupby(pieces, key=lambda piece: piece.share):
        ends = list(same)
        found.append(Piece(ends[0].start, ends[-1].stop, share))
    return found
