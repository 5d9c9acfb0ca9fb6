"""An encoder's configuration and tokenizer, from a folder, the hub, or settings."""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig

from road_ds.common.errors import RoadError, first_line, nearest
from road_ds.common.hub import model_folder
from road_ds.config.road import ModelSpec
from road_ds.data.batch import rounded_up
from road_ds.data.tokenizer import check_vocabulary, read_tokenizer
from road_ds.models.pretrained import read_config
from road_ds.tasks.base import Task

# Encoders whose layers are modules of their own, all alike, under encoder.layer.
STACKED = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta", "deberta-v2")


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer of a model. RoadError when it cannot be used."""
    name = spec.tokenizer or spec.name or ""
    folder = model_folder(name, weights=False)
    if spec.tokenizer is None:
        read_config(folder, name)  # which the tokenizer's class comes from: its faults have a message of their own
    return read_tokenizer(folder, name)


def base_config(spec: ModelSpec, tokenizer: Any, dropout: float | None) -> Any:
    """The encoder's Hugging Face configuration, with the run's dropout in every place that has one.

    RoadError where it does not go with the tokenizer, whose ids are the rows of its embedding.
    """
    if spec.architecture is not None:
        if spec.architecture not in CONFIG_MAPPING:
            raise RoadError(
                f"road.model.architecture: {spec.architecture!r} is not known to transformers"
                f"{nearest(spec.architecture, CONFIG_MAPPING.keys())}"
            )
        _check_settings(CONFIG_MAPPING[spec.architecture], spec.config)
        changes = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **spec.config}
        try:
            config = AutoConfig.for_model(spec.architecture, **changes)
        except Exception as error:
            raise RoadError(f"road.model.config: {spec.architecture} cannot use it: {first_line(error)}") from None
    else:
        config = read_config(model_folder(spec.name or "", weights=False), spec.name or "", spec.config)
        _check_settings(type(config), spec.config)
        if spec.layers is not None:
            config.num_hidden_layers = len(layers_taken(spec, config))
    where = "road.model.config.vocab_size" if "vocab_size" in spec.config else spec.name or "road.model"
    check_vocabulary(tokenizer, config, where, trained=spec.name is not None)
    if dropout is not None:
        for key, value in list(vars(config).items()):
            if "dropout" in key and (value is None or isinstance(value, float | int)) and not isinstance(value, bool):
                setattr(config, key, dropout)
    return config


def layers_taken(spec: ModelSpec, config: Any) -> list[int]:
    """The layers of a pretrained encoder that the model of a run begins with; config: that encoder's own.

    A number is spread evenly from the first layer on, as floor(i depth / number): of 12 layers, 4 are 0, 3, 6, 9. RoadError
    for layers that are not there, or that cannot be taken apart.
    """
    depth, name = config.num_hidden_layers, spec.name
    if config.model_type not in STACKED:
        raise RoadError(
            f"road.model.layers: the layers of {name} ({config.model_type}) cannot be taken one by one"
            f"{': all depths share them' if config.model_type == 'albert' else ''}; that works for {', '.join(STACKED)}"
        )
    given = spec.layers
    chosen = [i * depth // given for i in range(given)] if isinstance(given, int) else given or []
    if len(chosen) > depth or chosen[-1] >= depth:
        raise RoadError(f"road.model.layers: got {given}; {name} has {depth} layers, 0 to {depth - 1}")
    return chosen


def _check_settings(kind: type, settings: Mapping[str, Any]) -> None:
    """RoadError for a setting that transformers would keep without ever reading it.

    Not all that it reads is declared (DeBERTa's position_buckets, say): the source of the two modules decides.
    """
    modules = [kind.__module__, kind.__module__.replace(".configuration_", ".modeling_")]
    words = set(re.findall(r"\w+", "".join(inspect.getsource(importlib.import_module(name)) for name in modules)))
    for key in settings:
        if key not in words and not hasattr(kind(), key):
            known = kind().to_dict()
            raise RoadError(f"road.model.config.{key}: {kind.model_type} has no such setting{nearest(key, known)}")  # type: ignore[attr-defined]


def check_lengths(config: Any, tasks: Mapping[str, Task]) -> None:
    """RoadError when a task's rows are longer than the encoder's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1  # their positions start behind the padding id
    for name, task in tasks.items():
        padded = rounded_up(task.max_length)  # what a batch of the longest rows has
        if padded > positions:
            raise RoadError(
                f"road.tasks.{name}.max_length {task.max_length} is above the encoder's {positions} positions"
                f"{'' if task.max_length > positions else f' once padded to {padded}'}"
            )


def uses_token_types(config: Any, tokenizer: Any) -> bool:
    """Whether an encoder tells the first text from the second by token types."""
    return "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1
