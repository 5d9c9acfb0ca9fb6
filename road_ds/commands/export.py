"""export: Hugging Face folders from a checkpoint, ONNX graphs beside them."""

import argparse
from pathlib import Path
from typing import Any

from road_ds.commands.arguments import command
from road_ds.common.errors import RoadError
from road_ds.common.hub import TASK_FILE, expanded, trained_heads


def add(commands: Any) -> None:
    """Adds the command line."""
    added = command(commands, "export", run)
    added.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="runs/<name>/checkpoints/step-N, or a run folder (its newest);"
        " with --onnx also what was exported: a run's models, or one of them",
    )  # fmt: skip
    added.add_argument("--output", metavar="FOLDER", help="where to write (default: model/ in the run folder)")
    added.add_argument(
        "--shared-encoder",
        action="store_true",
        help="writes the encoder once, in a folder beside the heads that they read it from",
    )
    added.add_argument(
        "--onnx", action="store_true", help="writes model.onnx into each head's folder, held against its model"
    )


def run(options: argparse.Namespace) -> None:
    """Writes the Hugging Face folders of a checkpoint; with --onnx a graph into each, or into those that are there."""
    from road_ds.engine.weights import export_checkpoint

    source = Path(options.checkpoint)
    if not source.is_dir():
        raise RoadError(f"{source}: no such folder: give runs/<name> or runs/<name>/checkpoints/step-N")
    output = options.output and expanded(options.output, "--output ")
    if options.onnx:
        from road_ds.models.graph import refuse_lacking, write_graph

        refuse_lacking()
    folders = written(source) if options.onnx and not output else []
    for folder in folders or export_checkpoint(source, output, options.shared_encoder):
        print(write_graph(folder) if options.onnx else folder)


def written(source: Path) -> list[Path]:
    """The heads that are exported already: the folder itself, or those of a run folder."""
    return [source] if (source / TASK_FILE).exists() else [*trained_heads(str(source)).values()]
