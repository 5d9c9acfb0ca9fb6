"""Checkpoints that are committed, not just written: staged, hashed, renamed in one move; and found again."""

import contextlib
import os
import pickle
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from road_ds.common import sealed
from road_ds.common.errors import RankError, RoadError
from road_ds.common.log import warn
from road_ds.common.ranks import Ranks
from road_ds.common.sealed import MANIFEST, Damaged, Manifest, commit, seal

COMMITTED = re.compile(r"step-(\d{8})(\.old)?")
ENGINE = "engine"  # the folder, inside a checkpoint, that DeepSpeed writes and reads
Engines = Mapping[str, Any]  # beside that one, each by its own folder


class Saved(Manifest):
    """What a checkpoint says of itself."""

    before: ClassVar[str] = (
        " (then export it with the version that saved it, and give the exported folder as road.model)"
    )

    run: str  # the id of the run that wrote it
    step: int  # steps done by then
    world_size: int
    stage: int
    groups: int | None = None  # of the optimizer; until there was this field, one for each rate
    config: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: its folder, and its manifest."""

    folder: Path
    manifest: Saved

    @property
    def step(self) -> int:
        """How many steps were done when it was saved."""
        return self.manifest.step


def save(
    engine: Any,
    ranks: Ranks,
    root: Path,
    *,
    run: str,
    step: int,
    config: dict[str, Any],
    keep: int,
    beside: Engines = MappingProxyType({}),
) -> None:
    """Commits a checkpoint after `step` steps, on all ranks together, and prunes to the newest `keep`.

    The rename is the commit: a folder `step-N` is whole, anything else is not a checkpoint. When a rank cannot write
    (disk full), the staged files are removed on all, older checkpoints stay, and OSError is raised on all.
    """
    staged, final = root / f".staged-{step:08d}", root / f"step-{step:08d}"
    with all_or_none(ranks, staged):
        if ranks.rank == 0:
            root.mkdir(parents=True, exist_ok=True)
            for left in (*root.glob(".staged-*"), *root.glob(".removed-*")):
                shutil.rmtree(left)
            staged.mkdir()
    with all_or_none(ranks, staged) as faults:
        for name, one in {ENGINE: engine, **beside}.items():
            with write_faults_kept(one, faults):
                one.save_checkpoint(str(staged), tag=name, save_latest=False)
        save_file(random_state(), staged / f"random-{ranks.rank:05d}.safetensors")
    with all_or_none(ranks, staged):
        if ranks.rank == 0:
            meta = {"run": run, "step": step, "world_size": ranks.world_size, "stage": engine.zero_optimization_stage()}
            write_manifest(staged, {**meta, "groups": len(engine.optimizer.param_groups), "config": config})
            commit(staged, final)
    if ranks.rank == 0:
        prune(root, keep)


@contextlib.contextmanager
def all_or_none(ranks: Ranks, staged: Path) -> Iterator[list[Exception]]:
    """A part of a save: a fault of any rank, raised or added to the list, removes the staged files and is OSError on all."""
    faults: list[Exception] = []
    try:
        yield faults
    except (OSError, SafetensorError) as error:
        faults.append(error)
    told = [fault for fault in ranks.gather(str(faults[0]) if faults else None) if fault is not None]
    if told:
        if ranks.rank == 0:
            shutil.rmtree(staged, ignore_errors=True)
        raise OSError(f"the checkpoint could not be written: {told[0]}")


@contextlib.contextmanager
def write_faults_kept(engine: Any, faults: list[Exception]) -> Iterator[None]:
    """Collects the faults of an engine's file writes: raised at once, they would leave the other ranks in its barriers.

    DeepSpeed's scripts that turn a checkpoint into weights are left out: `road_ds export` does it, and hashes first.
    """
    write = engine.checkpoint_engine.save

    def keeping(*args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except OSError as error:
            faults.append(error)
        except RuntimeError as error:  # torch's writer does not say why it wrote less than it should
            faults.append(OSError(f"{error} (is the disk full?)"))

    engine.checkpoint_engine.save, engine._copy_recovery_script = keeping, lambda folder: None
    try:
        yield
    finally:
        engine.checkpoint_engine.save = write
        del engine._copy_recovery_script


def write_manifest(staged: Path, facts: dict[str, Any]) -> None:
    """Seals a staged checkpoint, when every rank has written its part."""
    missing = [r for r in range(facts["world_size"]) if not (staged / f"random-{r:05d}.safetensors").exists()]
    if missing:
        raise OSError(f"rank {missing[0]} wrote to another file system: the run folder must be shared by all hosts")
    seal(staged, Saved, facts)


def prune(root: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints, the oldest first, each in one move; the folder too, where it is empty then."""
    for folder in reversed(committed(root)[keep:]):
        gone = root / f".removed-{folder.name}"
        try:
            os.replace(folder, gone)
            shutil.rmtree(gone)
        except OSError as error:
            warn(f"{folder}: the old checkpoint could not be removed: {error}")
    if not keep:
        with contextlib.suppress(OSError):  # a link, or what was set aside as damaged
            root.rmdir()


def committed(root: Path) -> list[Path]:
    """The checkpoint folders under `root`, newest first; RoadError when it cannot be looked into."""
    try:
        found = [path for path in root.iterdir() if COMMITTED.fullmatch(path.name)] if root.is_dir() else []
    except OSError as error:
        raise RoadError(f"{root}: cannot be read: {error.strerror}: give this user the right to read it") from None
    return sorted(found, key=lambda path: (path.name[:13], not path.suffix), reverse=True)


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in a folder. Damaged when any file does not hold against its hash."""
    return Checkpoint(folder, sealed.verify(folder, Saved))


def newest(root: Path, run: str | None = None) -> Checkpoint:
    """The newest checkpoint that verifies; damaged ones are named and passed over.

    RoadError when there is none, or when one belongs to another run than the given one.
    """
    folders = committed(root)
    if run is not None:
        refuse_strangers(folders, run)
    for folder in folders:
        try:
            return verify(folder)
        except Damaged as error:
            warn(f"checkpoint {folder.name} is damaged ({error}); trying the one before")
    raise RoadError(
        f"{root}: no checkpoint to resume from"
        + (f" ({len(folders)} found, all damaged)" if folders else "")
        + ": start anew with --overwrite, which removes the run folder"
    )


def refuse_strangers(folders: list[Path], run: str) -> None:
    """RoadError when one of the checkpoints is of another run: it must not be resumed, nor pruned as an older one."""
    for folder in folders:
        with contextlib.suppress(Damaged):
            if (other := sealed.read_manifest(folder / MANIFEST, Saved).run) != run:
                raise RoadError(
                    f"{folder}: is a checkpoint of another run ({other}, this folder's is {run}): move it away, or start "
                    "another run from its weights (python -m road_ds export, then road.model)"
                )


def restore(engine: Any, ranks: Ranks, checkpoint: Checkpoint, beside: Engines = MappingProxyType({})) -> None:
    """Loads weights, optimizer, schedule and random states. RoadError when this run's shape cannot take them."""
    stage, world_size = checkpoint.manifest.stage, checkpoint.manifest.world_size
    if stage > 0 and world_size != ranks.world_size:
        raise RoadError(
            f"{checkpoint.folder}: ZeRO {stage} splits the optimizer over {world_size} processes, this run has "
            f"{ranks.world_size}: resume on {world_size}, or start a new run from its weights "
            "(python -m road_ds export, then road.model)"
        )
    if (here := engine.zero_optimization_stage()) != stage:
        again = f"resume with --set zero_optimization.stage={stage}, or " if stage < 3 or world_size > 1 else ""
        raise RoadError(
            f"{checkpoint.folder}: was saved under ZeRO stage {stage}, this run has stage {here}: {again}start a new run "
            "from its weights (python -m road_ds export, then road.model)"
        )
    refuse_other_groups(checkpoint, len(engine.optimizer.param_groups))
    with without_code(checkpoint):
        for name, one in {ENGINE: engine, **beside}.items():
            one.load_checkpoint(str(checkpoint.folder), tag=name)
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


def refuse_other_groups(checkpoint: Checkpoint, now: int) -> None:
    """RoadError when the optimizer's state was saved in other groups than the `now` groups of this run."""
    before, config = checkpoint.manifest.groups, checkpoint.manifest.config
    by_rate = before is None and config["road"]["layer_lr_decay"] < 1
    if (by_rate and now <= 2) or before not in (None, now):
        raise RoadError(
            f"{checkpoint.folder}: its optimizer has {before or 'a parameter group for each learning rate'}"
            f"{' parameter groups' if before else ''}, this version's has {now}: finish the run with the version that "
            "began it, or start a new run from its weights (python -m road_ds export, then road.model)"
        )


@contextlib.contextmanager
def without_code(checkpoint: Checkpoint) -> Iterator[None]:
    """Inside, torch.load makes tensors, plain values and DeepSpeed's own few types, whatever its caller asks for.

    A pickle may hold code, and its hashes only tell that it is the one that somebody saved. RankError for anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    load = torch.load

    def safe(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "weights_only": True})

    torch.load = safe
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"holds {named[1]}, which is" if named else "holds what is"
        raise RankError(
            f"{checkpoint.folder}: {found} no part of a checkpoint and could run code: it was not loaded"
        ) from None
    finally:
        torch.load = load


def set_aside(chosen: Checkpoint) -> None:
    """Renames the checkpoints that are newer than the chosen one: they must not count as the newest again."""
    folders = committed(chosen.folder.parent)
    for folder in folders[: folders.index(chosen.folder)]:
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
