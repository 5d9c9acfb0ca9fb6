"""Text that a masked language model writes for student and teachers to disagree on (MATE-KD): settings, places, choice."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from road_ds.common.errors import RoadError
from road_ds.common.noise import keyed
from road_ds.config.settings import Count, Strict
from road_ds.data.batch import Batch


class Adversarial(Strict):
    """An added term: the teachers' answers on text that a generator makes of each row (MATE-KD).

    The total is (1 - weight) of the objective's own, on the text as it is written, and weight of its loss against the teachers alone
    on the generated one. generator: a masked language model; the student's own by default.
    """

    weight: Annotated[float, Field(gt=0, le=1)] = 1 / 3
    generator: str | None = None
    mask: Annotated[float, Field(gt=0, le=1)] = 0.3
    tau: Annotated[float, Field(gt=0)] = 1.0
    divergence: Literal["kl", "cross_entropy"] = "kl"
    generator_steps: Count = 10
    student_steps: Count = 100
    learning_rate: Annotated[float, Field(gt=0)] = 5e-7
    clip: Annotated[float, Field(ge=0)] = 5.0

    def steps(self, begin: int, end: int) -> range:
        """The generator's steps before those of the student from `begin` up to `end`."""
        first, last = (-(-step // self.student_steps) * self.generator_steps for step in (begin, end))
        return range(first, last)


@dataclass(frozen=True)
class Vocabulary:
    """What a generator may write. mask: the id of its mask; special: which ids stand for no text, [entries]."""

    mask: int
    special: torch.Tensor

    @classmethod
    def of(cls, tokenizer: Any, device: torch.device) -> "Vocabulary":
        """A tokenizer's. RoadError where it has no mask."""
        if tokenizer.mask_token_id is None:
            raise RoadError(
                "road.distill.adversarial: the student's tokenizer has no mask token: nothing can be masked"
            )
        special = torch.ones(max(tokenizer.get_vocab().values()) + 1, dtype=torch.bool)
        special[list(tokenizer.get_vocab().values())] = False
        special[tokenizer.all_special_ids] = True
        return cls(tokenizer.mask_token_id, special.to(device))


@dataclass(frozen=True)
class Gaps:
    """The places of a batch where a generator writes, and the noise by which it chooses.

    at: the places in the flattened batch, [gaps]; noise: [gaps, entries], Gumbel's, in float32. A place that holds a special token is
    among them and stays as it is: to leave it out would wait for the device.
    """

    batch: Batch
    vocabulary: Vocabulary
    at: torch.Tensor
    noise: torch.Tensor

    @classmethod
    def drawn(cls, batch: Batch, vocabulary: Vocabulary, share: float, *key: int | str) -> "Gaps":
        """Each place of a row with probability `share`; drawn by the key and the row, whatever the batch around it."""
        device, width = batch.input_ids.device, batch.input_ids.shape[1]
        names = [(*key, batch.dataset, feature) for feature in batch.features.tolist()]
        places = [
            torch.rand(tokens, generator=keyed(torch.device("cpu"), "mask", *name)).lt(share).nonzero().flatten()
            for name, tokens in zip(names, batch.tokens, strict=True)
        ]
        at = torch.cat([row * width + found for row, found in enumerate(places)])
        noise = torch.empty(len(at), len(vocabulary.special), device=device)
        for name, rows in zip(names, noise.split([len(found) for found in places]), strict=True):
            rows.exponential_(generator=keyed(device, "noise", *name))
        return cls(batch, vocabulary, at.to(device, non_blocking=True), noise.clamp_(min=1e-30).log_().neg_())

    @property
    def before(self) -> torch.Tensor:
        """What stands there, [gaps]."""
        return self.batch.input_ids.flatten()[self.at]

    @property
    def free(self) -> torch.Tensor:
        """Where that is no special token, [gaps]."""
        return ~self.vocabulary.special[self.before]

    def filled(self, ids: torch.Tensor | int) -> Batch:
        """The batch with other tokens at the free places."""
        ids = torch.where(self.free, ids, self.before)
        return replace(
            self.batch,
            input_ids=self.batch.input_ids.flatten().index_copy(0, self.at, ids).view_as(self.batch.input_ids),
        )

    def chosen(self, logits: torch.Tensor, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids that a generator with these logits writes, [gaps], and its shares of all, [gaps, entries]: Gumbel-softmax.

        The gradient of the one-hot rows of the first is taken for that of the second ("straight through"). No special token is written.
        """
        special = self.vocabulary.special
        scores = logits[:, : len(special)].float().masked_fill(special, float("-inf")) + self.noise
        return scores.argmax(-1), (scores / tau).softmax(-1)
