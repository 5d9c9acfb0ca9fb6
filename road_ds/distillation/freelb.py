"""FreeLB: each row trained on where small steps on its word embeddings raise its loss."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from road_ds.common.noise import keyed
from road_ds.config.road import FreeLBSettings
from road_ds.data.batch import Batch


@dataclass(frozen=True)
class FreeLB:
    """The views of a batch that a step trains on (FreeLB, Algorithm 1). width: of the student's word embeddings.

    Each view is a micro-batch of the engine, whose mean over a step's micro-batches is then FreeLB's mean over its steps.
    A row's ascent begins at a point that depends on seed, step and row alone; all its views have one dropout mask.
    """

    settings: FreeLBSettings
    width: int
    seed: int

    def __call__(self, batch: Batch, step: int) -> Iterator[Batch]:
        """The batch at each point of its ascent; the gradient of a view is looked at when the next one is asked for."""
        device = batch.input_ids.device
        dropout = random_state(device)
        mask = batch.attention_mask[:, :, None]  # [features, tokens, 1]
        point = self.inside(self.begin(batch, step))
        for left in reversed(range(self.settings.steps)):
            view = replace(batch, added=point.requires_grad_(left > 0))
            yield view
            if left:
                assert view.added is not None and view.added.grad is not None
                point = self.inside(point.detach() + self.settings.step_size * self.direction(view.added.grad * mask))
                set_random_state(device, dropout)

    def begin(self, batch: Batch, step: int) -> torch.Tensor:
        """[features, tokens, width]: evenly drawn from a cube at a row's own tokens, zero behind them.

        The cube's half side is `init_magnitude`, for "l2" divided by the root of the row's numbers, so that no norm is above it.
        """
        found = torch.zeros(*batch.input_ids.shape, self.width, device=batch.input_ids.device)
        for row, (key, tokens) in enumerate(zip(batch.keys(), batch.tokens, strict=True)):
            side = self.settings.init_magnitude
            if self.settings.norm == "l2":
                side /= (tokens * self.width) ** 0.5
            noise = keyed(found.device, "freelb", self.seed, step, batch.dataset, *key)
            found[row, :tokens].uniform_(-side, side, generator=noise)
        return found

    def direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of each row, of norm 1; zero where it is zero or, after an overflow, not finite."""
        norm = self.norms(gradient)
        return torch.where(norm.isfinite() & (norm > 0), gradient / norm, 0.0)

    def inside(self, point: torch.Tensor) -> torch.Tensor:
        """The point itself, or the one of the ball that is nearest to it."""
        most = self.settings.max_norm
        if not most:
            return point
        if self.settings.norm == "linf":
            return point.clamp(-most, most)
        return point * (most / self.norms(point).clamp(min=1e-30)).clamp(max=1.0)

    def norms(self, values: torch.Tensor) -> torch.Tensor:
        """[features, 1, 1]."""
        order = 2 if self.settings.norm == "l2" else torch.inf
        return torch.linalg.vector_norm(values, order, dim=(1, 2), keepdim=True)


def once(batch: Batch, step: int) -> Iterator[Batch]:
    """The views of a batch in a run without ascent: itself."""
    yield batch


def random_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that a device's dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_random_state(device: torch.device, state: torch.Tensor) -> None:
    """Sets it back."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
