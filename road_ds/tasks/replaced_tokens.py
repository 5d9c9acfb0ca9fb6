"""Replaced-token detection, ELECTRA's pretraining: which tokens of a text a small generator has put there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr, field_validator
from torch.nn import functional as F
from transformers import AutoModelForPreTraining

from road_ds.common.errors import RoadError
from road_ds.data.batch import Batch
from road_ds.data.masking import BEGINS, CONTINUES, SPECIAL, Masking, blocks_of, choose, gumbel, masked_count
from road_ds.tasks.base import Task
from road_ds.tasks.outputs import Outputs
from road_ds.tasks.sequences import sequences

WEIGHT = 50.0  # of the discriminator's loss beside the generator's, as published
KEPT = 0.15  # of the masked tokens stay as they are, as published; the rest become the mask
UNKNOWN = -1.0  # where a fact of a token has no value


@dataclass(frozen=True)
class Vocabulary:
    """What the task knows of a tokenizer. kinds: what each entry is, [entries] as in `masking`; pieces: its text."""

    mask: int
    kinds: np.ndarray
    pieces: list[str]

    @classmethod
    def of(cls, tokenizer: Any, whole_words: bool) -> "Vocabulary":
        """The vocabulary of a tokenizer. RoadError where pieces of words are to be told and cannot be."""
        size = max(tokenizer.get_vocab().values()) + 1
        pieces = [piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(size)))]
        prefix = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None)
        if whole_words and not prefix:
            raise RoadError("whole_words needs a WordPiece tokenizer, which marks the pieces inside a word")
        kinds = np.array([CONTINUES if prefix and p.startswith(prefix) else BEGINS for p in pieces], dtype=np.int8)
        kinds[[at for at in tokenizer.all_special_ids if at != tokenizer.unk_token_id and at < size]] = SPECIAL
        return cls(tokenizer.mask_token_id, kinds, pieces)


@dataclass(frozen=True)
class Told:
    """What was said of the tokens of a document. Of each token: what a generator has done is UNKNOWN where there was none.

    logits: of having been replaced; replaced: 1 or 0; losses: of the generator where it was masked, right: whether it knew.
    """

    ids: np.ndarray
    logits: np.ndarray
    replaced: np.ndarray
    losses: np.ndarray
    right: np.ndarray

    @property
    def flagged(self) -> np.ndarray:
        """Which tokens count as replaced."""
        return self.logits > 0


class ReplacedTokens(Task):
    """Which tokens of a text a generator has replaced (Clark et al., 2020): MLM + 50 RTD, generator and encoder trained together.

    masked: the share of a row's tokens that are masked; generator: its width as a share of the encoder's, or the name of a
    trained one.
    """

    type: Literal["replaced_tokens"]
    masked: Annotated[float, Field(gt=0, lt=1)] = 0.15
    whole_words: bool = False
    generator: Annotated[float, Field(gt=0)] | str = 0.25
    _vocabulary: Vocabulary | None = PrivateAttr(None)

    model: ClassVar[Any] = AutoModelForPreTraining
    headline: ClassVar[str] = "replaced_f1"
    row_metric: ClassVar[str] = "told_apart"
    supervised: ClassVar[bool] = False
    truncates: ClassVar[bool] = False
    over_tokens: ClassVar[bool] = True

    @field_validator("generator")
    @classmethod
    def no_wider_than_the_encoder(cls, value: float | str) -> float | str:
        if isinstance(value, float) and value > 1:
            raise ValueError(
                f"got {value:g}; a generator wider than the encoder it trains makes replacements too hard to find: expected a "
                "share up to 1 (published: 0.25, or 0.333 for base), or a trained generator's name"
            )
        return value

    @property
    def rows_per_feature(self):
        """Where it is scored: what `Told` holds of each token beside its id."""
        return 4

    def head_settings(self):
        return {}

    def generated_by(self):
        return self.generator

    def encoding(self):
        return {"type": self.type, "max_length": self.max_length}

    def labelled(self, example):
        return True

    def encode(self, examples, tokenizer, first=0):
        Vocabulary.of(tokenizer, self.whole_words)
        return sequences(examples, tokenizer, self.max_length, first)

    def reading(self, tokenizer):
        task = self.model_copy()
        task._vocabulary = Vocabulary.of(tokenizer, self.whole_words)
        return task

    def draw(self, batch: Batch, key: Sequence[int], lengths: np.ndarray) -> Batch:
        """The batch with its masked tokens and the noise to replace them with: functions of `key` and of each row's number.

        A row of n tokens has max(1, round(masked n)) of them, so the number in a whole pass follows from its rows' lengths,
        and a micro-batch's loss can be such that their mean is the pass's mean over masked tokens.
        """
        vocabulary = self._vocabulary
        if vocabulary is None:
            return batch
        ids, width = batch.input_ids.numpy(), batch.input_ids.shape[1]
        size = len(vocabulary.kinds)
        places, shown, noise = [], [], []
        for i, (row, length) in enumerate(zip(batch.features, batch.lengths.tolist(), strict=True)):
            generator = np.random.default_rng([*key, int(row)])
            own = ids[i, :length]
            count = int(masked_count(length, self.masked))
            chosen = choose(vocabulary.kinds[own], count, self.whole_words, generator)
            places.append(i * width + chosen)
            shown.append(np.where(generator.random(len(chosen)) < KEPT, own[chosen], vocabulary.mask))
            noise.append(gumbel((len(chosen), sum(blocks_of(size))), generator))
        pieces = len(lengths) / len(batch.features)
        masking = Masking(
            places=torch.from_numpy(np.concatenate(places)),
            shown=torch.from_numpy(np.concatenate(shown)),
            noise=torch.from_numpy(np.concatenate(noise)),
            vocabulary=size,
            weight=pieces / float(masked_count(lengths, self.masked).sum()),
            token_weight=pieces / float(np.sum(lengths)),
        )
        return replace(batch, masking=masking)

    def outputs(self, head, batch):
        """Logits of having been replaced, [features, tokens]; in training the loss, otherwise the facts that `Told` holds."""
        logits, generated, masking = head.logits, batch.generated, batch.masking
        if generated is None or masking is None:
            unknown = torch.full_like(logits, UNKNOWN)
            return stacked([logits, unknown, unknown, unknown], batch)
        if generated.right is not None:
            empty = torch.full_like(logits, UNKNOWN, dtype=torch.float32).flatten()
            facts = [
                empty.index_copy(0, masking.places, found.float()) for found in (generated.losses, generated.right)
            ]
            return stacked([logits, generated.replaced, *(fact.view_as(logits) for fact in facts)], batch)
        losses = F.binary_cross_entropy_with_logits(logits.float(), generated.replaced.float(), reduction="none")
        mlm = masking.weight * generated.loss
        rtd = masking.token_weight * (losses * batch.attention_mask).sum()
        terms = {"mlm": mlm.detach(), "rtd": rtd.detach()}
        return Outputs(logits, batch.lengths, loss=mlm + WEIGHT * rtd, terms=terms)

    def predict(self, examples, features, logits):
        found: dict[int, list[tuple[Any, ...]]] = {}
        for feature, rows in zip(features, logits, strict=True):
            found.setdefault(int(feature.example), []).append((np.asarray(feature.input_ids), *rows))
        nothing = [(np.array([], dtype=np.int64), *np.empty((4, 0)))]
        return [Told(*map(np.concatenate, zip(*found.get(i, nothing), strict=True))) for i in range(len(examples))]

    def score(self, examples, predictions):
        """MLM loss and accuracy over masked tokens, RTD loss over all, precision, recall and F1 of finding the replaced."""
        whole = Told(*(np.concatenate([getattr(p, name) for p in predictions]) for name in Told.__dataclass_fields__))
        if (whole.replaced == UNKNOWN).any():
            raise RoadError("replaced tokens are scored where they are trained, beside their generator")
        masked, replaced = whole.losses != UNKNOWN, whole.replaced > 0
        hits = float((whole.flagged & replaced).sum())
        precision, recall = hits / max(1, whole.flagged.sum()), hits / max(1, replaced.sum())
        rtd = np.logaddexp(0, np.where(replaced, -whole.logits, whole.logits))
        return {
            "replaced_f1": 100 * 2 * precision * recall / max(precision + recall, 1e-30),
            "replaced_precision": 100 * precision,
            "replaced_recall": 100 * recall,
            "replaced_share": 100 * float(replaced.mean()),
            "rtd_loss": float(rtd.mean()),
            "mlm_loss": float(whole.losses[masked].mean()),
            "mlm_accuracy": 100 * float(whole.right[masked].mean()),
        }

    def row_scores(self, examples, predictions):
        """The share of a document's tokens that are told apart."""
        return [float(np.mean(p.flagged == (p.replaced > 0))) if len(p.ids) else 1.0 for p in predictions]

    def baseline(self, examples):
        return {"replaced_f1": 0.0}

    def describe(self, prediction):
        pieces = self._vocabulary.pieces if self._vocabulary else None
        names = [pieces[at] if pieces else int(at) for at in prediction.ids]
        said = {"looks_replaced": [name for name, flag in zip(names, prediction.flagged, strict=True) if flag]}
        if (prediction.replaced == UNKNOWN).any():
            return said
        return {
            **said,
            "masked": int((prediction.losses != UNKNOWN).sum()),
            "replaced": int((prediction.replaced > 0).sum()),
        }


def stacked(facts: Sequence[torch.Tensor], batch: Batch) -> Outputs:
    """Facts of tokens, each [features, tokens], as the rows of logits of a feature."""
    rows = torch.stack([fact.float() for fact in facts], dim=1)
    return Outputs(rows.flatten(0, 1), batch.lengths.repeat_interleave(len(facts)))
