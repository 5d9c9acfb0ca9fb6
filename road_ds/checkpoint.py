"""Checkpoints that are committed, not just written: staged, hashed, renamed in one move; and found again."""

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from road_ds.digest import file_sha256
from road_ds.errors import RoadError
from road_ds.log import warn
from road_ds.ranks import Ranks

COMMITTED = re.compile(r"step-(\d{8})")
ENGINE = "engine"  # the folder, inside a checkpoint, that DeepSpeed writes and reads


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its folder, and its manifest (step, world_size, stage, config, files)."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """How many steps were done when it was saved."""
        return self.manifest["step"]


def save(engine: Any, ranks: Ranks, root: Path, *, step: int, config: dict[str, Any], keep: int) -> None:
    """Commits a checkpoint after `step` steps, on all ranks together, and prunes to the newest `keep`.

    The rename is the commit: a folder `step-N` is whole, anything else is not a checkpoint. When a rank cannot write
    (disk full), the staged files are removed on all, older checkpoints stay, and OSError is raised on all.
    """
    staged, final = root / f".staged-{step:08d}", root / f"step-{step:08d}"
    if ranks.rank == 0:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(".staged-*"):
            shutil.rmtree(left)
        staged.mkdir()
    ranks.barrier()
    with write_faults_kept(engine) as faults:
        engine.save_checkpoint(str(staged), tag=ENGINE, save_latest=False)
    try:
        save_file(random_state(), staged / f"random-{ranks.rank:05d}.safetensors")
    except (OSError, SafetensorError) as error:
        faults.append(error)
    if ranks.any(bool(faults)):
        _discard(staged, ranks, faults)
    try:
        if ranks.rank == 0:
            meta = {"step": step, "world_size": ranks.world_size, "stage": engine.zero_optimization_stage()}
            write_manifest(staged, {**meta, "config": config})
            commit(staged, final)
    except OSError as error:
        faults.append(error)
    if ranks.any(bool(faults)):
        _discard(staged, ranks, faults)
    if ranks.rank == 0:
        prune(root, keep)


@contextmanager
def write_faults_kept(engine: Any) -> Iterator[list[Exception]]:
    """Collects the faults of an engine's file writes: raised at once, they would leave the other ranks in its barriers."""
    faults: list[Exception] = []
    write = engine.checkpoint_engine.save

    def keeping(*args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            faults.append(error)

    engine.checkpoint_engine.save = keeping
    try:
        yield faults
    finally:
        engine.checkpoint_engine.save = write


def _discard(staged: Path, ranks: Ranks, faults: list[Exception]) -> None:
    if ranks.rank == 0:
        shutil.rmtree(staged, ignore_errors=True)
    raise OSError(f"the checkpoint could not be written: {faults[0] if faults else 'another rank failed'}")


def write_manifest(staged: Path, facts: dict[str, Any]) -> None:
    """Writes manifest.json: the given facts, and size and sha256 of every other file."""
    missing = [r for r in range(facts["world_size"]) if not (staged / f"random-{r:05d}.safetensors").exists()]
    if missing:
        raise OSError(f"rank {missing[0]} wrote to another file system: the run folder must be shared by all hosts")
    files = {str(path.relative_to(staged)): _fingerprint(path) for path in _files(staged)}
    text = json.dumps({**facts, "files": files}, indent=1)
    (staged / "manifest.json").write_text(text, encoding="utf-8")
    for path in [*_files(staged), staged / "manifest.json", staged]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def commit(staged: Path, final: Path) -> None:
    """Makes a staged folder a checkpoint, in one move."""
    if final.exists():
        shutil.rmtree(final)
    os.replace(staged, final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints."""
    for folder in committed(root)[keep:]:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            warn(f"{folder}: the old checkpoint could not be removed: {error}")


def committed(root: Path) -> list[Path]:
    """The checkpoint folders under `root`, newest first."""
    found = [path for path in root.iterdir() if COMMITTED.fullmatch(path.name)] if root.is_dir() else []
    return sorted(found, reverse=True)


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in a folder, every file's size and hash compared. RoadError that names the damaged file."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        int(manifest["step"]), int(manifest["world_size"]), int(manifest["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RoadError(f"{folder / 'manifest.json'}: missing or damaged") from None
    for name, wanted in files.items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise RoadError(f"{folder / 'manifest.json'}: names a file outside its folder: {name!r}")
        if not path.is_file():
            raise RoadError(f"{path}: is missing")
        if path.stat().st_size != wanted["size"]:
            raise RoadError(f"{path}: has {path.stat().st_size} bytes, expected {wanted['size']}")
        if _fingerprint(path) != wanted:
            raise RoadError(f"{path}: has changed since it was saved (sha256 differs)")
    extra = {str(path.relative_to(folder)) for path in _files(folder)} - {*files, "manifest.json"}
    if extra:
        raise RoadError(f"{folder / min(extra)}: is not in the manifest")
    return Checkpoint(folder, manifest)


def newest(root: Path) -> Checkpoint:
    """The newest checkpoint that verifies; damaged ones are named and passed over. RoadError when there is none."""
    folders = committed(root)
    for folder in folders:
        try:
            return verify(folder)
        except RoadError as error:
            warn(f"checkpoint {folder.name} is damaged ({error}); trying the one before")
    raise RoadError(
        f"{root}: no checkpoint to resume from"
        + (f" ({len(folders)} found, all damaged)" if folders else "")
        + ": start anew with --overwrite, which removes the run folder"
    )


def restore(engine: Any, ranks: Ranks, checkpoint: Checkpoint) -> None:
    """Loads weights, optimizer, schedule and random states. RoadError when this run's shape cannot take them."""
    stage, world_size = checkpoint.manifest["stage"], checkpoint.manifest["world_size"]
    if engine.zero_optimization_stage() != stage:
        raise RoadError(
            f"{checkpoint.folder}: was saved under ZeRO stage {stage}, this run has stage "
            f"{engine.zero_optimization_stage()}: resume with --set zero_optimization.stage={stage}, or start a new run "
            "from its weights (python -m road_ds export, then road.model)"
        )
    if stage > 0 and world_size != ranks.world_size:
        raise RoadError(
            f"{checkpoint.folder}: ZeRO {stage} splits the optimizer over {world_size} processes, this run has "
            f"{ranks.world_size}: resume on {world_size}, or start a new run from its weights "
            "(python -m road_ds export, then road.model)"
        )
    engine.load_checkpoint(str(checkpoint.folder), tag=ENGINE)
    if ranks.rank == 0:
        set_aside(checkpoint)
    own = checkpoint.folder / f"random-{ranks.rank:05d}.safetensors"
    if world_size == ranks.world_size:
        restore_random_state(load_file(own))
    else:
        torch.manual_seed(hash((checkpoint.step, ranks.rank)))
        warn(
            f"the run goes on with {ranks.world_size} processes instead of {world_size}: same rows, other dropout masks"
        )


def set_aside(chosen: Checkpoint) -> None:
    """Renames the damaged checkpoints that are newer than the chosen one: they must not count as the newest again."""
    for folder in committed(chosen.folder.parent):
        if folder.name > chosen.folder.name:
            aside = folder.with_name(f"damaged-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(folder, aside)


def random_state() -> dict[str, torch.Tensor]:
    """Every generator's state in this process: torch, device, NumPy, Python."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict) and numpy["bit_generator"] == "MT19937"
    version, python, python_gauss = random.getstate()
    assert version == 3
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
        "numpy_rest": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]], dtype=torch.float64),
        "python": torch.tensor(python, dtype=torch.int64),
        "python_gauss": torch.tensor([] if python_gauss is None else [python_gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        state["device"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor]) -> None:
    """Sets every generator to what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy_rest"].tolist()
    np.random.set_state(
        ("MT19937", state["numpy_keys"].numpy().astype(np.uint32), int(position), int(has_gauss), gauss)
    )
    python_gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), python_gauss[0] if python_gauss else None))
    if "device" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["device"])


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}
