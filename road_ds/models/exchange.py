"""Layers of a model exchanged in place for others that do the same work."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


def exchange(model: nn.Module, kind: type[Layer], other: Callable[[Layer], nn.Module | None]) -> int:
    """How many layers of exactly this kind became what `other` makes of them; None leaves a layer as it is."""
    count = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is kind and (made := other(layer)) is not None:
                setattr(parent, name, made)
                count += 1
    return count
