"""ELECTRA's generator: a small masked language model whose guesses take the place of tokens that the encoder then reads."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from road_kernels import linear_kd_loss
from torch import nn
from transformers import ElectraForMaskedLM, PreTrainedModel

from road_ds.common.errors import RoadError, first_line
from road_ds.common.hub import model_folder
from road_ds.data.batch import Batch
from road_ds.data.masking import Generated, Masking, draw
from road_ds.models.pretrained import load_weights, read_config, read_tensors

FOLDER = "generator"  # inside the folder of its head


PARTS = (
    "electra.encoder.",
    "electra.embeddings_project.",
    "generator_predictions.",
    "generator_lm_head.bias",
)  # its own


def generator_config(asked: float | str, config: Any) -> Any:
    """The configuration of the generator that an encoder's rows pass.

    asked: its width as a share of the encoder's (as deep, with heads of the same size), or a trained one's name. RoadError for
    one that does not suit the encoder.
    """
    if config.model_type != "electra":
        raise RoadError(
            f"road.model: replaced tokens are told apart by an ELECTRA, which has a head for it; got {config.model_type}"
        )
    if isinstance(asked, str):
        return named(asked, config)
    hidden, size = round(config.hidden_size * asked), config.hidden_size // config.num_attention_heads
    heads = max(1, hidden // size)
    if hidden < 1 or hidden % heads:
        raise RoadError(
            f"generator {asked:g} of the encoder's width {config.hidden_size} is {hidden}, which does not divide into heads of "
            f"{size}: take a share that gives a multiple of {size}"
        )
    changed = copy.deepcopy(config)
    changed.hidden_size, changed.num_attention_heads = hidden, heads
    changed.intermediate_size = round(config.intermediate_size * hidden / config.hidden_size)
    return changed


def named(name: str, encoder: Any) -> Any:
    """The configuration of a trained generator, with the encoder's dropout. RoadError where it does not suit the encoder."""
    config = read_config(model_folder(name, weights=False), name)
    if config.model_type != "electra":
        raise RoadError(
            f"generator {name}: expected an ELECTRA generator (ElectraForMaskedLM), got {config.model_type}"
        )
    for key in ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
        if getattr(config, key) != getattr(encoder, key):
            raise RoadError(
                f"generator {name}: its {key} is {getattr(config, key)}, the encoder's {getattr(encoder, key)}: they share their "
                "embeddings, so both must be of one size"
            )
    if config.hidden_size > encoder.hidden_size:
        raise RoadError(
            f"generator {name}: its width {config.hidden_size} is above the encoder's {encoder.hidden_size}, whose task it would "
            "make too hard: expected a generator up to as wide"
        )
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(config, key, getattr(encoder, key))
    return config


def own_parameters(config: Any) -> int:
    """How many parameters a generator has beside the embeddings."""
    whole = fresh_generator(config)
    return sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in whole.electra.embeddings.parameters())


def build_generator(
    asked: float | str, config: Any, embeddings: nn.Module, folder: Path | None, pretrained: bool
) -> "Generator":
    """A generator beside an encoder's embeddings; config: its own.

    Trained where it is named and `pretrained` is asked for, or where the folder of a trained head, if one is given, holds
    one of the same sizes.
    """
    whole = fresh_generator(config)
    if isinstance(asked, str) and pretrained:
        trained = load_weights(ElectraForMaskedLM, model_folder(asked), asked, config=config, dtype=torch.float32)
        whole.load_state_dict(trained.state_dict())
    elif folder is not None and (folder / FOLDER / "config.json").exists():
        wanted = {key: value for key, value in whole.state_dict().items() if key.startswith(PARTS)}
        state = read_tensors(folder / FOLDER, wanted)
        if all(key in state and state[key].shape == value.shape for key, value in wanted.items()):
            whole.load_state_dict(state, strict=False)
    return Generator(whole, embeddings)


def fresh_generator(config: Any) -> ElectraForMaskedLM:
    """The Hugging Face model of a generator. RoadError where its settings give none."""
    try:
        return ElectraForMaskedLM(config)
    except Exception as error:  # the settings are the user's
        raise RoadError(f"the generator's settings give no model: {first_line(error)}") from None


class Given(nn.Module):
    """Stands for the embeddings of a generator: the encoder's have read the tokens already."""

    word_embeddings = None  # transformers asks for them where layers are computed again in the backward pass

    def forward(self, inputs_embeds: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return inputs_embeds


class Vocabulary(nn.Module):
    """The output layer of a generator; its matrix is the embeddings' own."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, states: torch.Tensor, labels: torch.Tensor, masking: Masking) -> tuple[torch.Tensor, ...]:
        """The sum of the cross-entropies, each of them, a sample for each, and the likeliest token (none in training).

        states: [masked, embedding]. The logits are never whole in memory.
        """
        sampled = torch.empty_like(labels)
        likeliest = labels.new_empty(0 if self.training else len(labels))

        def look(rows: slice, logits: torch.Tensor) -> None:
            sampled[rows] = draw(logits, masking.noise[rows], masking.vocabulary)
            if not self.training:
                likeliest[rows] = logits.argmax(1)

        found = linear_kd_loss(
            states, self.weight, labels, bias=self.bias, temperature=1.0, weight=0.0, reduction="sum", visit=look
        )
        return found.total, found.hard, sampled, likeliest


class Generator(nn.Module):
    """A masked language model that shares the encoder's embeddings: token, position and type tables and their norm.

    That is what google-research/electra shares. The state is Hugging Face's, without what is shared but the output matrix.
    """

    def __init__(self, whole: Any, embeddings: Any):
        super().__init__()
        self.config = whole.config
        self.electra = whole.electra
        self.electra.embeddings = Given()
        self.generator_predictions = whole.generator_predictions
        self.generator_lm_head = Vocabulary(embeddings.word_embeddings.weight, whole.generator_lm_head.bias)

    def forward(self, embedded: torch.Tensor, batch: Batch, **inputs: Any) -> Batch:
        """The batch with samples in place of its masked tokens.

        embedded: the embeddings of the masked rows; inputs: what else the encoder reads, rows packed or padded.
        """
        masking = batch.masking
        assert masking is not None
        hidden = self.electra(inputs_embeds=embedded, **inputs).last_hidden_state
        states = self.generator_predictions(hidden.flatten(0, 1).index_select(0, masking.places))
        original = batch.input_ids.flatten()
        labels = original.index_select(0, masking.places)
        loss, losses, sampled, likeliest = self.generator_lm_head(states, labels, masking)
        ids = original.index_copy(0, masking.places, sampled).view_as(batch.input_ids)
        right = None if self.training else likeliest == labels
        return replace(batch, input_ids=ids, generated=Generated(ids != batch.input_ids, loss, losses, right))


def shown(batch: Batch) -> torch.Tensor:
    """The rows of a batch as a generator reads them, [features, tokens]."""
    masking = batch.masking
    assert masking is not None
    return batch.input_ids.flatten().index_copy(0, masking.places, masking.shown).view_as(batch.input_ids)


def generator_model(
    config: Any, state: Mapping[str, torch.Tensor], encoder: Mapping[str, torch.Tensor]
) -> PreTrainedModel:
    """A generator as Hugging Face's model. state: the Generator's; encoder: the encoder's, which the embeddings are of."""
    whole = ElectraForMaskedLM(copy.deepcopy(config))
    shared = {f"electra.{key}": value for key, value in encoder.items() if key.startswith("embeddings.")}
    whole.load_state_dict({**shared, **state})
    whole.to(next(iter(state.values())).dtype)  # type: ignore[arg-type]
    return whole.eval()
