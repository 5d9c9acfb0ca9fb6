"""The whole model's weights, out of an engine or a checkpoint."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch

from road_ds.common.errors import RoadError
from road_ds.config.road import RoadConfig
from road_ds.config.settings import validated
from road_ds.engine.checkpoint import ENGINE, Checkpoint, newest, verify, without_code
from road_ds.engine.run_folder import RunFolder
from road_ds.models.build import build_model
from road_ds.models.card import Card
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.tasks.registry import heads

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The whole model's weights on the CPU of rank 0, in the precision they were trained in; empty on other ranks."""
    import deepspeed

    module = engine.module
    parameters = list(module.parameters()) if engine.zero_optimization_stage() == 3 else []
    with deepspeed.zero.GatheredParameters(parameters):
        if engine.global_rank != 0:
            return {}
        return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}


def export_checkpoint(folder: Path, output: Path | None, shared: bool = False) -> list[Path]:
    """Writes the heads of a committed checkpoint, or of a run's newest; the folders written.

    shared: with one encoder beside them, as they also are where the run says so.
    Nothing of the engine's pickled files is opened before the manifest's hashes have been compared.
    """
    run = RunFolder(folder)
    if (folder / "checkpoints").is_dir():
        found = newest(folder / "checkpoints", run.run if run.is_run else None)
    elif run.is_run:
        raise RoadError(
            f"{folder}: the run keeps no checkpoint to export: its models are in {folder / 'model'}, as it wrote them; a run with "
            "road.keep=1 keeps one, and road.shared_encoder is a setting of runs, too"
        )
    else:
        found = verify(folder)
    config = validated(RoadConfig, found.manifest.config["road"], str(found.folder / "manifest.json"))
    tokenizer = load_tokenizer(config.model)
    pairs = found.manifest.config.get("pairs", {})
    tasks = {head: task.trained_on(pairs.get(head, ())) for head, task in heads(config).items()}
    model = build_model(config.model, tasks, tokenizer, dropout=config.dropout, seed=config.seed, pretrained=False)
    with without_code(found):
        state = _engine_state(found)
    target = output or found.folder.parent.parent / "model"
    card = Card.of_run(config, f"From the checkpoint after {found.step} steps.")
    return export(model, state, tokenizer, target, card, shared or config.shared_encoder)


def _engine_state(found: Checkpoint) -> dict[str, torch.Tensor]:
    """The model's weights in a verified checkpoint, put together from all ranks' parts under ZeRO 3."""
    if found.manifest.stage < 3:
        path = found.folder / ENGINE / "mp_rank_00_model_states.pt"
        return torch.load(path, map_location="cpu")["module"]
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    config = found.manifest.config
    dtype = next((kind for key, kind in HALF.items() if config.get(key, {}).get("enabled")), torch.float32)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        state = get_fp32_state_dict_from_zero_checkpoint(str(found.folder), tag=ENGINE)
    return {key: value.to(dtype) for key, value in state.items()}
