"""What a method on intermediate layers is: the states of student and teachers that it wants, and how far apart they are."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from road_ds.config.settings import Strict
from road_ds.models.states import Shape, States, Wanted


class LayerMethod(Strict):
    """The settings of a method. Subclasses are the methods: `weight` times their term is added to the loss."""

    method: str
    weight: Annotated[float, Field(gt=0)] = 1.0

    first: ClassVar[bool] = True  # the hidden states of the first token alone: what `teach` keeps beside the logits

    def compare(self, student: Shape, teacher: Shape, seed: int) -> "Comparison":
        """The comparison of two encoders, with fresh projections. RoadError where their shapes do not suit.

        seed: the run's, for choices at random.
        """
        raise NotImplementedError


class Comparison(nn.Module):
    """A method between a student and teachers of one shape. own, theirs: the states of each that it wants.

    Its weights are trained with the student's and no part of what is exported.
    """

    def __init__(self, student: Shape, teacher: Shape, own: Wanted, theirs: Wanted):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.own, self.theirs = own, theirs

    def forward(self, student: States, teachers: States, mask: Tensor, step: int) -> Tensor:
        """How far apart the states are, a mean over features and teachers.

        teachers: with a dimension over them in front; mask: [features, tokens], 1 where a token is real.
        """
        raise NotImplementedError

    @property
    def trained(self) -> bool:
        """Whether it has weights."""
        return any(True for _ in self.parameters())

    def idle(self, like: Tensor) -> Tensor:
        """The term between states of zeros: it lets the weights take part in a batch without teachers."""
        student, teachers = (
            zeros(wanted, shape, like) for wanted, shape in ((self.own, self.student), (self.theirs, self.teacher))
        )
        return self(student, States.stacked([teachers]), like.new_ones(1, 1), 0)


def zeros(wanted: Wanted, shape: Shape, like: Tensor) -> States:
    """Wanted states of one feature of one token, all zero."""
    tokens = () if wanted.first else (1,)
    return States(
        {layer: like.new_zeros(1, *tokens, shape.width) for layer in wanted.hidden},
        {layer: like.new_zeros(1, shape.heads, 1, 1) for layer in wanted.scores},
    )


def projection(student: Shape, teacher: Shape) -> nn.Module:
    """What takes the student's hidden states to the teacher's width: nothing where it is theirs."""
    return nn.Identity() if student.width == teacher.width else nn.Linear(student.width, teacher.width)


def token_error(own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of hidden states: over width and a row's own tokens, then over rows and teachers.

    own: [features, tokens, width]; other: [teachers, features, tokens, width].
    """
    share = mask / mask.sum(1, keepdim=True)
    return ((own.float() - other.float()).square().mean(-1) * share).sum(-1).mean()


def score_error(own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of attention scores: over heads and a row's own pairs of tokens, then over rows and teachers.

    own: [features, heads, tokens, tokens]; other: [teachers, features, heads, tokens, tokens].
    """
    share = mask / mask.sum(1, keepdim=True)
    pairs = (share[:, :, None] * share[:, None])[:, None]
    apart = (own.float() - other.float()).masked_fill(pairs == 0, 0.0)  # a mask stands there
    return (apart.square() * pairs).sum((-2, -1)).mean()


def mean_over_layers(terms: list[Tensor]) -> Tensor:
    """The mean of the terms of compared layers."""
    return torch.stack(terms).mean()
