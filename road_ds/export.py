"""Trained heads as plain Hugging Face folders."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from road_ds.config import read_json
from road_ds.errors import RoadError
from road_ds.log import write_json
from road_ds.model import MultiTaskModel
from road_ds.tasks import Task, task_from

TASK_FILE = "road_task.json"  # beside config.json: how the head's rows are encoded and its logits read


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The whole model's weights on the CPU of rank 0, in the precision they were trained in; empty on other ranks."""
    import deepspeed

    module = engine.module
    parameters = list(module.parameters()) if engine.zero_optimization_stage() == 3 else []
    with deepspeed.zero.GatheredParameters(parameters):
        if engine.global_rank != 0:
            return {}
        return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}


def export(model: MultiTaskModel, state: Mapping[str, torch.Tensor], tokenizer: Any, folder: Path, card: str) -> list[Path]:
    """Writes one folder per head: weights (safetensors), configuration, tokenizer, task settings and model card."""
    logging.disable_progress_bar()
    folders = []
    for head, task in model.tasks.items():
        target = folder / head
        target.mkdir(parents=True, exist_ok=True)
        whole = model.head_model(head, state)
        whole.config.architectures = [type(whole).__name__]
        whole.save_pretrained(str(target))
        tokenizer.save_pretrained(str(target))
        write_json(target / TASK_FILE, task.model_dump())
        (target / "README.md").write_text(_card(head, task, type(whole).__name__, card), encoding="utf-8")
        folders.append(target)
    return folders


def read_task(folder: Path) -> Task:
    """The task of an exported folder; of any other model folder, the one its architecture and labels tell."""
    if (folder / TASK_FILE).exists():
        return task_from(read_json(folder / TASK_FILE), str(folder / TASK_FILE))
    if not (folder / "config.json").exists():
        raise RoadError(f"{folder}: no config.json: expected an exported model folder (runs/<name>/model/<task>)")
    config = read_json(folder / "config.json")
    architecture = (config.get("architectures") or ["?"])[0]
    if architecture.endswith("ForQuestionAnswering"):
        return task_from({"type": "span_qa"}, str(folder))
    names = config.get("id2label") or {}
    if architecture.endswith("ForSequenceClassification") and len(names) > 1:
        return task_from({"type": "classification", "labels": [names[k] for k in sorted(names, key=int)]}, str(folder))
    if architecture.endswith("ForSequenceClassification"):
        return task_from({"type": "regression"}, str(folder))
    raise RoadError(f"{folder}: {architecture} has no task head: expected a question-answering or classification model")


def _card(head: str, task: Task, architecture: str, text: str) -> str:
    settings = json.dumps(task.model_dump(), indent=2)
    return (
        f"---\nlibrary_name: transformers\n---\n# {head}\n\n{architecture}, trained with road_ds.\n\n"
        f"    from transformers import AutoTokenizer, {task.model.__name__}\n"
        f"    model = {task.model.__name__}.from_pretrained(\".\")\n\n"
        f"Task settings (`{TASK_FILE}`):\n\n```json\n{settings}\n```\n\n{text}\n"
    )
