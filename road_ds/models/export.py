"""Trained heads as plain Hugging Face folders."""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from road_ds.common.errors import RoadError
from road_ds.common.hub import models_below, note_files
from road_ds.common.log import write_json
from road_ds.common.strict_json import load_json
from road_ds.models.generator import FOLDER
from road_ds.models.multi_task import MultiTaskModel
from road_ds.models.pretrained import written_head
from road_ds.tasks.base import Task
from road_ds.tasks.registry import task_from

TASK_FILE = "road_task.json"  # beside config.json: how the head's rows are encoded and its logits read


def export(
    model: MultiTaskModel, state: Mapping[str, torch.Tensor], tokenizer: Any, folder: Path, card: str
) -> list[Path]:
    """Writes one folder per head: weights (safetensors), configuration, tokenizer, task settings and model card.

    The heads are staged and take their names together: heads of two exports never stand side by side. RoadError when they
    cannot be written, and those before then stay, or when a folder of a head's name is no exported one.
    """
    logging.disable_progress_bar()
    targets = [folder / head for head in model.tasks]
    staged, before, gone = folder / ".staged", folder / ".replaced", folder / ".removed"
    try:
        _put_back(before, folder)  # where an export was killed
        for target in targets:
            if target.exists() and not (target / TASK_FILE).exists():
                raise RoadError(
                    f"{target}: exists and is no exported model ({TASK_FILE} is missing): give another folder"
                )
        for left in (staged, gone):
            shutil.rmtree(left, ignore_errors=True)
        for head, task in model.tasks.items():
            _write_head(
                staged / head, task, model.head_model(head, state), tokenizer, card, model.generator_model(head, state)
            )
        before.mkdir()
        for target in filter(Path.exists, targets):
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
    return targets


def _write_head(target: Path, task: Task, whole: Any, tokenizer: Any, card: str, generator: Any) -> None:
    _write_model(target, whole, tokenizer)
    if generator is not None:
        _write_model(target / FOLDER, generator, tokenizer)
    write_json(target / TASK_FILE, task.model_dump())
    (target / "README.md").write_text(_card(target.name, task, type(whole).__name__, card), encoding="utf-8")
    note_files(target)


def _write_model(target: Path, whole: Any, tokenizer: Any) -> None:
    target.mkdir(parents=True)
    whole.config.architectures = [type(whole).__name__]
    whole.save_pretrained(str(target))
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
        return task_from(load_json(folder / TASK_FILE), str(folder / TASK_FILE))
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
    if architecture.endswith("ForSequenceClassification"):
        return task_from({"type": "regression"}, str(folder))
    raise RoadError(f"{folder}: {architecture} has no task head: expected a question-answering or classification model")


def _card(head: str, task: Task, architecture: str, text: str) -> str:
    settings = json.dumps(task.model_dump(), indent=2)
    return (
        f"---\nlibrary_name: transformers\n---\n# {head}\n\n{architecture}, trained with road_ds.\n\n"
        f"    from transformers import AutoTokenizer, {task.model.__name__}\n"
        f'    model = {task.model.__name__}.from_pretrained(".")\n\n'
        f"Task settings (`{TASK_FILE}`):\n\n```json\n{settings}\n```\n\n{text}\n"
    )
