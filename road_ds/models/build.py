"""The model of a run: pretrained or with fresh weights, with a head for each task."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from road_ds.common.errors import RoadError, first_line
from road_ds.common.hub import model_folder, trained_heads, warn_of_changes
from road_ds.config.road import ModelSpec
from road_ds.data.batch import Batch
from road_ds.models.configuration import base_config, check_lengths, layers_taken, uses_token_types
from road_ds.models.generator import build_generator, generator_config
from road_ds.models.multi_task import MultiTaskModel
from road_ds.models.pretrained import load_weights, read_config, read_tensors, written_head
from road_ds.tasks.base import Task


def fresh_model(config: Any, task: Task) -> PreTrainedModel:
    """The Hugging Face model of a task's head around an encoder of this configuration. RoadError where there is none."""
    changed = copy.deepcopy(config)
    for key, value in task.head_settings().items():
        setattr(changed, key, value)
    try:
        return task.model.from_config(changed)
    except Exception as error:  # the settings are the user's, and each architecture fails on them in its own way
        raise RoadError(
            f"road.model: {config.model_type} with these settings gives no model for {task.type}: {first_line(error)}"
        ) from None


def build_model(
    spec: ModelSpec,
    tasks: Mapping[str, Task],
    tokenizer: Any,
    *,
    dropout: float | None,
    seed: int,
    pretrained: bool = True,
) -> MultiTaskModel:
    """The model of a run, pretrained or with fresh weights; the same weights on every rank.

    A pretrained folder's own head is kept where it is the task's: same model class and, for classification, the same
    label names, its rows permuted when their order differs. Other heads start fresh. Of a run folder, each head of the
    same name is looked at.
    """
    logging.disable_progress_bar()  # the bar of a run is its own
    config = base_config(spec, tokenizer, dropout)
    check_lengths(config, tasks)
    torch.manual_seed(seed)
    asked = {name: own for name, task in tasks.items() if (own := task.generated_by()) is not None}
    narrower = {name: generator_config(own, config) for name, own in asked.items()}
    shells = {name: fresh_model(config, task) for name, task in tasks.items()}
    # A classification head of BERT or ALBERT needs the pooler, which span heads build their encoder without.
    encoder = max((getattr(s, s.base_model_prefix) for s in shells.values()), key=lambda e: len(list(e.parameters())))
    of: dict[str, Path] = {}
    if spec.name is not None and pretrained:
        folder, trained = model_folder(spec.name), trained_heads(spec.name)
        of = {name: trained.get(name, folder) for name in shells}
        for read in dict.fromkeys((folder, *of.values())):
            warn_of_changes(read)
        _load_encoder(encoder, folder, spec)
        for name, shell in shells.items():
            _load_head(shell, of[name], tasks[name])
    generators = {
        name: build_generator(own, narrower[name], encoder.embeddings, of.get(name), pretrained)
        for name, own in asked.items()
    }
    model = MultiTaskModel(encoder, shells, tasks, uses_token_types(config, tokenizer), generators)
    _try_out(model)
    return model


def _try_out(model: MultiTaskModel) -> None:
    """RoadError when the model cannot compute: sizes that do not fit show only then."""
    ids = torch.zeros(1, 4, dtype=torch.long)
    batch = Batch("", np.zeros(1), ids, torch.ones_like(ids), ids, torch.tensor([4]), torch.zeros(2))
    training = model.training
    model.eval()  # no dropout: no random number is drawn
    try:
        with torch.no_grad():
            for head in model.tasks:
                model(batch, head)
    except Exception as error:
        raise RoadError(f"road.model: the model cannot compute with these settings: {first_line(error)}") from None
    model.train(training)


def _load_encoder(encoder: PreTrainedModel, folder: Path, spec: ModelSpec) -> None:
    """Copies a folder's encoder weights, or some of its layers, whether it holds them bare or inside a model with a head."""
    name, whole = spec.name or "", copy.deepcopy(encoder.config)
    if spec.layers is not None:
        whole.num_hidden_layers = read_config(folder, name).num_hidden_layers
    source = load_weights(AutoModel, folder, name, spared="pooler", config=whole, dtype=torch.float32)
    if spec.layers is not None:
        source.encoder.layer = nn.ModuleList(source.encoder.layer[layer] for layer in layers_taken(spec, whole))
    found = source.state_dict()
    encoder.load_state_dict({key: found.get(key, value) for key, value in encoder.state_dict().items()})


def _load_head(shell: PreTrainedModel, folder: Path, task: Task) -> None:
    """Copies a folder's head where it is this task's own; leaves the fresh one otherwise."""
    architectures, before = written_head(folder)
    wanted = {k: v for k, v in shell.state_dict().items() if not k.startswith(shell.base_model_prefix + ".")}
    if type(shell).__name__ not in architectures:
        return
    state = read_tensors(folder, wanted)
    if any(key not in state or state[key].shape != value.shape for key, value in wanted.items()):
        return
    labels = task.head_settings().get("id2label")
    if labels is not None:
        if sorted(before) != sorted(labels.values()):
            return
        order = [before.index(labels[i]) for i in range(len(labels))]
        last = list(wanted)[-1].rpartition(".")[0]  # the final projection, whose rows are the labels
        state |= {key: value[order] for key, value in state.items() if key.startswith(last + ".")}
    shell.load_state_dict(state, strict=False)
