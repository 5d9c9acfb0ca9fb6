"""Settings that move with the progress of a run."""

import math
from typing import Annotated, Literal

from pydantic import Field

from road_ds.config.settings import Strict


class Schedule(Strict):
    """A number that moves from `start` to `end` with the progress of the run."""

    start: Annotated[float, Field(ge=0)]
    end: Annotated[float, Field(ge=0)]
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, progress: float) -> float:
        """The value at a progress in [0, 1]."""
        share = progress if self.shape == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * share


def at(value: "float | Schedule", progress: float) -> float:
    """A setting's value at a progress in [0, 1]; a plain number is constant."""
    return value.at(progress) if isinstance(value, Schedule) else value
