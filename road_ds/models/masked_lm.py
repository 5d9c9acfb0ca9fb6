"""A masked language model that says only what is asked: its logits at given places."""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMaskedLM
from transformers.modeling_outputs import BaseModelOutput

from road_ds.common.errors import RoadError
from road_ds.common.hub import model_folder, warn_of_changes
from road_ds.config.road import ModelSpec
from road_ds.data.batch import Batch
from road_ds.data.tokenizer import read_tokenizer, tokenizer_hash
from road_ds.models.configuration import base_config, uses_token_types
from road_ds.models.multi_task import Replay
from road_ds.models.pretrained import load_weights
from road_ds.tasks.outputs import Outputs


class MaskedLM(nn.Module):
    """An encoder and the head that tells its words, both of one Hugging Face model.

    The head is run on the places that are asked for alone: a vocabulary's logits for each token of a batch would be its largest tensor.
    """

    def __init__(self, shell: Any, types: bool):
        super().__init__()
        self.encoder = getattr(shell, shell.base_model_prefix)
        self.uses_token_types = types
        setattr(shell, shell.base_model_prefix, Replay())
        self.head = nn.ModuleDict({n: m for n, m in shell.named_children() if n != shell.base_model_prefix})
        self._shell = [shell]  # in a list: not part of the module tree

    def forward(self, batch: Batch, at: torch.Tensor) -> Outputs:
        """The logits at places of the flattened batch, [places, entries]."""
        inputs = {"token_type_ids": batch.token_type_ids} if self.uses_token_types else {}
        states = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **inputs)
        (shell,) = self._shell
        replay = getattr(shell, shell.base_model_prefix)
        replay.encoded = BaseModelOutput(last_hidden_state=states.last_hidden_state.flatten(0, 1)[at][None])
        try:
            return Outputs(shell(input_ids=None).logits[0])
        finally:
            replay.encoded = None


def load_masked_lm(name: str, tokenizer: Any, dropout: float | None, about: str) -> MaskedLM:
    """The masked language model of a folder or hub name, whose entries must be those of a tokenizer.

    RoadError, which begins with `about`, where it is none or has another vocabulary.
    """
    folder = model_folder(name)
    warn_of_changes(folder)
    if tokenizer_hash(read_tokenizer(folder, name)) != tokenizer_hash(tokenizer):
        raise RoadError(
            f"{about}: {name} has another vocabulary than the student and its teachers, which read what it writes: give a "
            "masked language model with their tokenizer"
        )
    config = base_config(ModelSpec(name=name), tokenizer, dropout)
    try:
        shell = load_weights(AutoModelForMaskedLM, folder, name, config=config, dtype=torch.float32)
    except RoadError as error:
        raise RoadError(f"{about}: no masked language model: {error}") from None
    return MaskedLM(shell, uses_token_types(config, tokenizer))
