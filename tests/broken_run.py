"""A run that breaks on purpose: python broken_run.py POINT STEP RANK ARGUMENTS-OF-TRAIN...

POINT is where the process kills itself (backward, write, manifest, prune); "full", where its disk is; or "forget": a resume that leaves the random
states as they are, the control that shows the tests can see a difference.
"""

import os
import signal
import sys

import torch

from road_ds import loop, train
from road_ds.common import heartbeat
from road_ds.engine import checkpoint

point, step, rank = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
arguments = [argument for argument in sys.argv[4:]]


def die_at(counted: int) -> None:
    if counted == step and int(os.environ.get("RANK", "0")) == rank:
        os.kill(os.getpid(), signal.SIGKILL)


def breaking(function, when):
    """The function, dying first when `when(its arguments)` is the chosen step."""

    def broken(*args, **kwargs):
        die_at(when(*args, **kwargs))
        return function(*args, **kwargs)

    return broken


def saved_step(path) -> int:
    return int(str(path).split(".staged-")[1].split("/")[0])


if point == "backward":  # inside a step, some micro-batches done
    loop.step_engine = breaking(
        loop.step_engine, lambda engine: engine.global_steps + 1 if engine.is_gradient_accumulation_boundary() else -1
    )
elif point == "write":  # the engine's files are written, this rank's random state is not
    checkpoint.save_file = breaking(checkpoint.save_file, lambda tensors, path: saved_step(path))
elif point == "manifest":  # everything is written but the manifest
    checkpoint.write_manifest = breaking(checkpoint.write_manifest, lambda staged, facts: facts["step"])
elif point == "prune":  # committed, old ones not yet removed
    checkpoint.prune = breaking(checkpoint.prune, lambda root, keep: int(checkpoint.committed(root)[0].name[5:]))
elif point == "full":  # this rank's disk is full: DeepSpeed's file cannot be written
    whole = torch.save

    def no_space(value, path, *args, **kwargs):
        if int(os.environ.get("RANK", "0")) == rank and f".staged-{step:08d}" in str(path):
            raise OSError(28, "No space left on device")
        whole(value, path, *args, **kwargs)

    torch.save = no_space
elif point == "forget":
    checkpoint.restore_random_state = lambda state: None
code = train.main(arguments)
heartbeat.leave(code)
sys.exit(code)
