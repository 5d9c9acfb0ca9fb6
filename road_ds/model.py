"""The multi-task model: one shared encoder, one Hugging Face head per task."""

import copy
import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from road_ds.config import ModelSpec, nearest
from road_ds.data.features import Batch, rounded_up
from road_ds.errors import RoadError, first_line
from road_ds.hub import model_folder, trained_heads, warn_of_changes
from road_ds.objectives import Outputs
from road_ds.packing import ATTENTION, Packing, unpack_output
from road_ds.pretrained import load_weights, read_config, read_tensors, written_head
from road_ds.tasks import Task
from road_ds.tokenizer import check_vocabulary, read_tokenizer


class Replay(nn.Module):
    """Stands where a head's model expects its encoder, and gives back what the shared encoder computed."""

    def __init__(self):
        super().__init__()
        self.encoded: Any = None

    def forward(self, *args, **kwargs):
        return self.encoded


class MultiTaskModel(nn.Module):
    """A shared encoder and one head per task (ROaD, section 2.1).

    The heads are Hugging Face's own, run inside their own model class, so an exported folder computes the same
    logits. Those classes hold the shared encoder's stand-in and stay outside the module tree; encoder and head
    modules are inside it, each once.
    """

    def __init__(
        self, encoder: PreTrainedModel, shells: Mapping[str, PreTrainedModel], tasks: Mapping[str, Task], types: bool
    ):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict()
        self.tasks, self.uses_token_types = dict(tasks), types
        self._shells = dict(shells)  # a plain dict: not part of the module tree
        # Packed rows are padded again where the layers end, so that a pooler behind them sees rows.
        getattr(encoder, "encoder", encoder).register_forward_hook(unpack_output, with_kwargs=True)
        for name, shell in shells.items():
            setattr(shell, shell.base_model_prefix, Replay())
            modules = {n: m for n, m in shell.named_children() if n != shell.base_model_prefix}
            self.heads[name.replace(".", "/")] = nn.ModuleDict(modules)
        self.compared: list[int] = []  # the layers whose hidden states a teacher's are compared with

    def project(self, layers: list[int], width: int) -> None:
        """Adds the learned projection of hidden states to a teacher's width; trained with the rest, never exported."""
        self.compared = layers
        self.projection = nn.Linear(self.encoder.config.hidden_size, width)

    def forward(self, batch: Batch, head: str) -> Outputs:
        """The logits of a batch under a head, [rows, classes].

        In training every other head runs on one row of zeros with weight 0: a head without a gradient in some
        micro-batch keeps an old one under ZeRO 3, and differs between ranks in what is reduced under ZeRO 2.
        """
        comparing = self.training and bool(self.compared)
        encoded = self.encode(batch, hidden_states=comparing)
        if not self.training:
            return self.tasks[head].outputs(self._head(head, encoded, batch.attention_mask), batch)
        # Zeros, not another data set's row: what overflows there in half precision would make the gradient NaN.
        first = type(encoded)(**{k: 0.0 * v[:1] for k, v in encoded.items() if torch.is_tensor(v)})
        # Always in one order: ZeRO 3 fetches weights ahead only while the modules follow each other as before.
        found = {
            name: self._head(
                name, *((encoded, batch.attention_mask) if name == head else (first, batch.attention_mask[:1]))
            )
            for name in self._shells
        }
        outputs = self.tasks[head].outputs(found.pop(head), batch)
        hidden = tuple(self.projection(encoded.hidden_states[layer]) for layer in self.compared) if comparing else ()
        # A data set without a teacher leaves the projection idle too.
        idle = [value for touched in found.values() for value in touched.values()] + [state[:1] for state in hidden]
        logits = outputs.logits
        for value in idle:
            logits = logits + 0.0 * value.float().nan_to_num(0.0, 0.0, 0.0).mean().to(logits.dtype)
        return Outputs(logits, outputs.lengths, hidden)

    def encode(self, batch: Batch, hidden_states: bool = False) -> Any:
        """What the encoder computes of a batch, last_hidden_state [features, tokens, hidden]; all layers' if asked for."""
        inputs = {"input_ids": batch.input_ids}
        if self.uses_token_types:
            inputs["token_type_ids"] = batch.token_type_ids
        packing = batch.packing
        if packing is None:
            mask = None if batch.full else batch.attention_mask
            more = {"output_hidden_states": True} if hidden_states else {}
            return self.encoder(**inputs, attention_mask=mask, **more)
        # RoBERTa and its kin count positions from behind the padding id.
        first = getattr(self.encoder.embeddings, "padding_idx", -1) + 1
        inputs = {name: packing.pack(tensor) for name, tensor in inputs.items()}
        return self.encoder(**inputs, position_ids=packing.positions + first, packing=packing)

    def use_packing(self) -> str:
        """Makes the encoder ready for packed batches; why it cannot run them, or "" when it can.

        Two rows are computed both ways, which speaks for every architecture, known here or not.
        """
        if not getattr(self.encoder, "_supports_attention_backend", False):
            return f"the attention of {self.encoder.config.model_type} is its own and knows no rows inside a sequence"
        lengths, training = np.array([5, 3]), self.training
        ids = torch.arange(10).view(2, 5) + (self.encoder.config.pad_token_id or 0) + 1  # none is padding
        real = torch.arange(5) < torch.tensor(lengths)[:, None]
        padded = Batch("", np.zeros(2), ids, real.long(), torch.zeros_like(ids), torch.tensor(lengths), torch.zeros(2))
        before = self.encoder.config._attn_implementation
        self.eval()
        with torch.no_grad():
            expected = self.encode(padded).last_hidden_state[real]
            self.encoder.set_attn_implementation(ATTENTION)
            try:
                found = self.encode(replace(padded, packing=Packing.of(lengths, 5))).last_hidden_state[real]
                same = torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
            except (TypeError, RuntimeError, IndexError):  # no position ids, say
                same = False
        self.train(training)
        if same:
            return "hidden states are compared with a teacher's, row by row" if self.compared else ""
        self.encoder.set_attn_implementation(before)
        return f"{self.encoder.config.model_type} computes something else when rows are packed"

    def _head(self, name: str, encoded: Any, attention_mask: torch.Tensor) -> Any:
        shell = self._shells[name]
        replay = getattr(shell, shell.base_model_prefix)
        replay.encoded = encoded
        try:
            return shell(input_ids=None, attention_mask=attention_mask)
        finally:
            replay.encoded = None

    def train(self, mode: bool = True):
        """As in torch; the heads' shells follow, since their own mode decides on dropout written as a function."""
        super().train(mode)
        for shell in self._shells.values():
            shell.training = mode
        return self

    def head_model(self, name: str, state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        """One head with the encoder, as the Hugging Face model it came from; `state` is this model's whole state."""
        shell = self._shells[name]
        prefix = shell.base_model_prefix
        own = {f"{prefix}.{k.removeprefix('encoder.')}": v for k, v in state.items() if k.startswith("encoder.")}
        head = f"heads.{name.replace('.', '/')}."
        own |= {k.removeprefix(head): v for k, v in state.items() if k.startswith(head)}
        whole = type(shell)(copy.deepcopy(shell.config))
        missing, unexpected = whole.load_state_dict(own, strict=False)
        missing = [key for key in missing if not key.endswith("position_ids")]
        # An encoder shared with a classification head may carry a pooler that a span head does not have.
        if missing or any("pooler" not in key for key in unexpected):
            raise RuntimeError(f"head {name}: missing {missing}, unexpected {unexpected}")
        dtype = next(iter(own.values())).dtype
        whole.to(dtype)  # type: ignore[arg-type]
        return whole.eval()


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
    where = "road.model.config.vocab_size" if "vocab_size" in spec.config else spec.name or "road.model"
    check_vocabulary(tokenizer, config, where, trained=spec.name is not None)
    if dropout is not None:
        for key, value in list(vars(config).items()):
            if "dropout" in key and (value is None or isinstance(value, float | int)) and not isinstance(value, bool):
                setattr(config, key, dropout)
    return config


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
    shells = {name: fresh_model(config, task) for name, task in tasks.items()}
    # A classification head of BERT or ALBERT needs the pooler, which span heads build their encoder without.
    encoder = max((getattr(s, s.base_model_prefix) for s in shells.values()), key=lambda e: len(list(e.parameters())))
    if spec.name is not None and pretrained:
        folder, trained = model_folder(spec.name), trained_heads(spec.name)
        of = {name: trained.get(name, folder) for name in shells}
        for read in dict.fromkeys((folder, *of.values())):
            warn_of_changes(read)
        _load_encoder(encoder, folder, spec.name)
        for name, shell in shells.items():
            _load_head(shell, of[name], tasks[name])
    model = MultiTaskModel(encoder, shells, tasks, uses_token_types(config, tokenizer))
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


def _load_encoder(encoder: PreTrainedModel, folder: Path, name: str) -> None:
    """Copies a folder's encoder weights, whether it holds them bare or inside a model with a head."""
    source = load_weights(AutoModel, folder, name, spared="pooler", config=encoder.config, dtype=torch.float32)
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


def uses_token_types(config: Any, tokenizer: Any) -> bool:
    """Whether an encoder tells the first text from the second by token types."""
    return "token_type_ids" in tokenizer.model_input_names and getattr(config, "type_vocab_size", 0) > 1


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters of a model, also where ZeRO 3 has partitioned them."""
    return sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
