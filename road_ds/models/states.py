"""What an encoder computes on the way to its last layer, as far as somebody wants to see it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from road_ds.common.errors import RoadError
from road_ds.data.packing import Packing


@dataclass(frozen=True, order=True)
class Shape:
    """The sizes of an encoder: its layers, the width of its hidden states, its attention heads."""

    layers: int
    width: int
    heads: int

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """Those of a Hugging Face configuration."""
        return cls(config.num_hidden_layers, config.hidden_size, config.num_attention_heads)


@dataclass(frozen=True)
class Wanted:
    """Which states are wanted, by layer from 1; 0 are the embeddings.

    hidden: layers whose hidden states, of the first token alone or of all; scores: layers whose attention scores before
    the softmax.
    """

    hidden: tuple[int, ...] = ()
    first: bool = False
    scores: tuple[int, ...] = ()


NOTHING = Wanted()


@dataclass(frozen=True)
class States:
    """What was wanted, by layer. Those of several teachers have one dimension more, in front.

    hidden: [features, tokens, width], of the first tokens [features, width]; scores: [features, heads, tokens, tokens].
    """

    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    scores: Mapping[int, Tensor] = field(default_factory=dict)

    @classmethod
    def stacked(cls, parts: "list[States]") -> "States":
        """The states of several teachers of one shape as one."""
        return cls(
            {layer: torch.stack([part.hidden[layer] for part in parts]) for layer in parts[0].hidden},
            {layer: torch.stack([part.scores[layer] for part in parts]) for layer in parts[0].scores},
        )


class Softmaxes(TorchFunctionMode):
    """Keeps what each softmax is given: in an encoder with transformers' eager attention, the scores, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is F.softmax:
            self.given.append(arguments[0])
        return function(*arguments, **(options or {}))


def observed(
    model: Callable[..., Any], inputs: Mapping[str, Any], wanted: Wanted, packing: Packing | None = None
) -> tuple[Any, States]:
    """What a Hugging Face model says, and the wanted states of its encoder; for scores its attention must be eager.

    packing: where rows lie that run as one sequence.
    """
    more = {"output_hidden_states": True} if wanted.hidden else {}
    with Softmaxes() if wanted.scores else nullcontext() as softmaxes:
        answered = model(**inputs, **more)
    hidden = {layer: _by_row(answered.hidden_states[layer], wanted.first, packing) for layer in wanted.hidden}
    scores: dict[int, Tensor] = {}
    if softmaxes is not None:
        config = model.config  # type: ignore[attr-defined]
        if len(softmaxes.given) != config.num_hidden_layers:
            raise RoadError(
                f"road.distill.layers: the attention of {config.model_type} has no scores to compare: take a method without"
            )
        scores = {layer: softmaxes.given[layer - 1] for layer in wanted.scores}
    return answered, States(hidden, scores)


def _by_row(state: Tensor, first: bool, packing: Packing | None) -> Tensor:
    """A layer's hidden states row by row; the last layer's have been unpacked already."""
    if packing is None or state.shape[:2] == packing.shape:
        return state[:, 0] if first else state
    return state[0].index_select(0, packing.bounds[:-1]) if first else packing.unpack(state)
