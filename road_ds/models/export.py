"""Trained heads as plain Hugging Face folders, each whole, or all beside one folder with the encoder that they share."""

import contextlib
import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from road_ds.common.errors import RoadError, first_line
from road_ds.common.hub import ENCODER, EXPORTED, TASK_FILE, models_below, note_files
from road_ds.common.log import write_json
from road_ds.common.strict_json import load_json
from road_ds.models.card import Card
from road_ds.models.generator import FOLDER
from road_ds.models.multi_task import MultiTaskModel
from road_ds.models.pretrained import written_head
from road_ds.tasks.base import Task
from road_ds.tasks.labels import label_names
from road_ds.tasks.registry import task_from

NOTHING_SAID = Card()
WEIGHTS, HEAD, INDEX = "model.safetensors", "model-head.safetensors", "model.safetensors.index.json"


def export(
    model: MultiTaskModel,
    state: Mapping[str, torch.Tensor],
    tokenizer: Any,
    folder: Path,
    card: Card = NOTHING_SAID,
    shared: bool = False,
) -> list[Path]:
    """Writes one folder per head: weights (safetensors), configuration, tokenizer, task settings and model card.

    shared: the encoder's weights once, in a folder of their own, which the heads' index files point to: transformers
    loads such a head as any other, as long as both folders lie side by side.

    The heads are staged and take their names together: heads of two exports never stand side by side. RoadError when they
    cannot be written, and those before then stay, or when a folder of a head's name is no exported one.
    """
    logging.disable_progress_bar()
    heads, encoder = [folder / head for head in model.tasks], folder / ENCODER
    targets = [*heads, *([encoder] if shared else [])]
    readers = sorted(path.parent for path in folder.glob(f"*/{INDEX}") if path.parent not in heads)
    if shared:
        _refuse_other_encoder(encoder, heads, readers)
    replaced = [*heads, *([encoder] if not readers and _is_encoder(encoder) else [])]
    staged, before, gone = folder / ".staged", folder / ".replaced", folder / ".removed"
    try:
        _put_back(before, folder)  # where an export was killed
        for target in heads:
            if target.exists() and not (target / TASK_FILE).exists():
                raise RoadError(
                    f"{target}: exists and is no exported model ({TASK_FILE} is missing): give another folder"
                )
        for left in (staged, gone):
            shutil.rmtree(left, ignore_errors=True)
        if shared:
            _write_encoder(staged / ENCODER, model, state, tokenizer)
        for head, task in model.tasks.items():
            whole, generator = model.head_model(head, state), model.generator_model(head, state)
            _write_head(staged / head, task, whole, tokenizer, card, generator, shared)
        before.mkdir()
        for target in filter(Path.exists, replaced):
            os.replace(target, before / target.name)
        for target in targets:
            os.replace(staged / target.name, target)
        os.replace(before, gone)  # from here on nothing is put back: what is half removed must not be
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            _put_back(before, folder)
        raise RoadError(
            f"{folder}: the models cannot be written: {getattr(error, 'strerror', None) or error} (free space there, or "
            "give another folder: python -m road_ds export)"
        ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    shutil.rmtree(gone, ignore_errors=True)
    return heads


def _is_encoder(folder: Path) -> bool:
    """Whether an export wrote a folder for the encoder of its heads."""
    return (folder / EXPORTED).exists() and not (folder / TASK_FILE).exists()


def _refuse_other_encoder(encoder: Path, heads: list[Path], readers: list[Path]) -> None:
    """RoadError where the encoder's folder is a head's or not ours, or heads that stay would read another run's encoder."""
    if encoder in heads:
        raise RoadError(
            f"{encoder}: is a head's folder, where the shared encoder's would be: call the task otherwise, or export whole heads"
        )
    if encoder.exists() and not _is_encoder(encoder):
        raise RoadError(f"{encoder}: exists and is no exported encoder: give another folder")
    if readers:
        raise RoadError(
            f"{readers[0]}: reads its encoder from {encoder}, which would be another one: give another folder"
        )


def _write_encoder(target: Path, model: MultiTaskModel, state: Mapping[str, torch.Tensor], tokenizer: Any) -> None:
    """The encoder as a model without a head; its weights have the names that they have inside the heads' models."""
    prefix, config = model.encoder_prefix, copy.deepcopy(model.encoder.config)
    own = {f"{prefix}.{k.removeprefix('encoder.')}": v for k, v in state.items() if k.startswith("encoder.")}
    target.mkdir(parents=True)
    config.architectures = [type(model.encoder).__name__]
    config.save_pretrained(str(target))
    _save_tokenizer(tokenizer, target)
    _save_tensors(own, target / WEIGHTS)
    note_files(target)


def _write_beside_encoder(target: Path, whole: Any, tokenizer: Any) -> None:
    """A head's own weights, and an index that names the encoder's file for the rest."""
    prefix, weights = f"{whole.base_model_prefix}.", whole.state_dict()
    own = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    target.mkdir(parents=True)
    whole.config.architectures = [type(whole).__name__]
    whole.config.save_pretrained(str(target))
    _save_tokenizer(tokenizer, target)
    _save_tensors(own, target / HEAD)
    size = sum(value.numel() * value.element_size() for value in weights.values())
    places = {key: HEAD if key in own else f"../{ENCODER}/{WEIGHTS}" for key in weights}
    write_json(target / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def made_whole(folder: Path, target: Path) -> Path:
    """A copy of a head that reads a shared encoder, with all of its weights in it. RoadError where they cannot be read."""
    places = load_json(folder / INDEX)["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for place in sorted(set(places.values())):
        try:
            tensors |= {key: value for key, value in load_file(folder / place).items() if key in places}
        except (OSError, SafetensorError) as error:
            raise RoadError(f"{folder / place}: the weights cannot be read: {first_line(error)}") from None
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(HEAD, INDEX, EXPORTED))
    _save_tensors(tensors, target / WEIGHTS)
    note_files(target)
    return target


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})


def _write_head(target: Path, task: Task, whole: Any, tokenizer: Any, card: Card, generator: Any, shared: bool) -> None:
    (_write_beside_encoder if shared else _write_model)(target, whole, tokenizer)
    if generator is not None:
        _write_model(target / FOLDER, generator, tokenizer)
    write_json(target / TASK_FILE, task.model_dump())
    text = card.text(target.name, task, type(whole).__name__, whole.base_model_prefix)
    (target / "README.md").write_text(text, encoding="utf-8")
    note_files(target, *([f"../{ENCODER}/{WEIGHTS}"] if shared else []))


def _write_model(target: Path, whole: Any, tokenizer: Any) -> None:
    target.mkdir(parents=True)
    whole.config.architectures = [type(whole).__name__]
    whole.save_pretrained(str(target))
    _save_tokenizer(tokenizer, target)


def _save_tokenizer(tokenizer: Any, target: Path) -> None:
    try:
        tokenizer.save_pretrained(str(target))
    except Exception as error:  # the tokenizers library has no other class for a full disk
        raise OSError(str(error)) from None


def _put_back(before: Path, folder: Path) -> None:
    """Gives the heads that an export had moved aside their places again."""
    if before.is_dir():
        for head in before.iterdir():
            shutil.rmtree(folder / head.name, ignore_errors=True)
            os.replace(head, folder / head.name)
        before.rmdir()


def read_task(folder: Path) -> Task:
    """The task of an exported folder; of any other model folder, the one its architecture and labels tell."""
    if (folder / TASK_FILE).exists():
        task = task_from(load_json(folder / TASK_FILE), str(folder / TASK_FILE))
        if label_names(task) == []:
            raise RoadError(f"{folder / TASK_FILE}.labels: is required")
        return task
    if not (folder / "config.json").exists():
        raise RoadError(f"{folder}: no config.json: expected an exported model folder (runs/<name>/model/<task>)")
    architectures, labels = written_head(folder)
    several = load_json(folder / "config.json").get("problem_type") == "multi_label_classification"
    architecture = next(iter(architectures), "")
    if not architecture:
        raise RoadError(
            f"{folder}: its config.json names no architecture: expected a model folder{models_below(folder)}"
        )
    if architecture.endswith("ForQuestionAnswering"):
        return task_from({"type": "span_qa"}, str(folder))
    if architecture.endswith("ForSequenceClassification") and len(labels) > 1:
        return task_from({"type": "multi_label" if several else "classification", "labels": labels}, str(folder))
    if architecture.endswith("ForTokenClassification"):
        return task_from({"type": "token_classification", "labels": labels}, str(folder))
    if architecture.endswith("ForSequenceClassification"):
        return task_from({"type": "regression"}, str(folder))
    if architecture.endswith("ForMultipleChoice"):
        return task_from({"type": "multiple_choice"}, str(folder))
    raise RoadError(f"{folder}: {architecture} has no task head: expected a question-answering or classification model")
