"""What a resumed run must keep, and where it goes on."""

from collections.abc import Mapping
from typing import Any

from road_ds.common.errors import RoadError
from road_ds.common.hub import trained_heads
from road_ds.common.log import table
from road_ds.common.strict_json import flat_keys
from road_ds.engine import checkpoint
from road_ds.engine.run_folder import RunFolder

OWN = {"road.cache", "road.output"}  # what each host may have its own of

# What a resumed run may change: nothing here decides on rows, weights or rates.
CHANGEABLE = {
    *("road." + key for key in ("shared_encoder", "languages")),
    *(
        "road." + key
        for key in ("evaluate_every", "evaluate_batch_size", "log_every", "save_every", "keep", "patience")
    ),
    *("road." + key for key in ("output", "cache", "max_skipped_steps", "step_timeout")),
    *("road." + key for key in ("padding", "compile", "activation_checkpointing")),
    *("road." + key for key in ("gradient_cosine_every", "distill.cache", "distill.on_mismatch")),
    *("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "tensorboard", "wandb", "csv_monitor", "comet"),
    *("steps_per_print", "timers", "wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger"),
    "log_level",
}


def resumable(folder: RunFolder, wanted: Mapping[str, Any], *, extend: bool = False) -> checkpoint.Checkpoint:
    """The checkpoint to go on from. RoadError that shows the difference when the run's settings or rows have changed.

    extend: the run may have more steps than it was begun with; one that has finished must.
    """
    found = checkpoint.newest(folder.path / "checkpoints", folder.run)
    before, now = flat_keys(found.manifest.config), flat_keys(wanted)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    refused = [key for key in changed if not any(key == k or key.startswith(k + ".") for k in CHANGEABLE)]
    steps = int(before.get("road.steps") or 0), int(now.get("road.steps") or 0)
    if extend and folder.was_finished and steps[1] <= found.step:
        raise RoadError(
            f"{folder.path} has had its {found.step:,} steps: to extend it, give it more (road.steps, or road.epochs)"
        )
    if extend and steps[0] < steps[1]:
        refused = [key for key in refused if key != "road.steps"]
    if refused:
        rows = [(key, before.get(key, "-"), now.get(key, "-")) for key in refused]
        raise RoadError(
            "a resumed run must keep its rows and the settings that decide on weights and rates; these differ:\n"
            + table(rows, ("key", "saved", "now"))
            + ("\nadd --extend to go on to more steps, " if refused == ["road.steps"] and steps[0] < steps[1] else "\n")
            + "set them back, or start another run with road.output"
            + (f" that goes on from this one's model: {lengthened(folder)}" if "road.steps" in refused else "")
        )
    return found


def lengthened(folder: RunFolder) -> str:
    """What to set so that a run begins with another one's weights."""
    setting = f"road.model={folder.path}"
    return setting if trained_heads(str(folder.path)) else f"python -m road_ds export {folder.path}, then {setting}"
