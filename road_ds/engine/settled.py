"""What the settings of a run come to on a machine: heads, objective, batch sizes, precision, and what is filled in."""

from dataclasses import dataclass
from typing import Any

import torch

from road_ds.common.errors import Faults
from road_ds.common.ranks import Ranks
from road_ds.config.fit import fit_batch, fit_optimizer, fit_precision, fit_stage
from road_ds.config.road import RoadConfig
from road_ds.distillation.objective import Objective, Taught
from road_ds.distillation.registry import adversarial_of, neighbours_of, objective_from
from road_ds.tasks.registry import Heads, heads


@dataclass(frozen=True)
class Machine:
    """Where a run computes. capability: the GPU's compute capability, None where there is no GPU."""

    device: str
    capability: tuple[int, int] | None
    processes: int

    @classmethod
    def of(cls, ranks: Ranks) -> "Machine":
        """This run's."""
        cuda = ranks.device.type == "cuda"
        return cls(ranks.device.type, torch.cuda.get_device_capability() if cuda else None, ranks.world_size)


@dataclass(frozen=True)
class Settled:
    """ds: DeepSpeed's part of the file with all that was left out; filled: a line for each such setting."""

    heads: Heads
    objective: Objective
    ds: dict[str, Any]
    precision: str
    filled: list[str]


def settle(config: RoadConfig, ds: dict[str, Any], machine: Machine, faults: Faults) -> Settled:
    """The settings of a run on a machine; what does not hold is collected in `faults` and left out."""
    objective, precision, filled, ds = Objective(), "fp32", [], {**ds}
    found = heads(config, faults)
    with faults.caught():
        objective = objective_from(config)
    if "train_batch_size" in ds:
        with faults.caught():
            ds |= fit_batch(ds, config.passes, machine.processes)
    with faults.caught():
        precision = fit_precision(ds, config.precision, machine.device, machine.capability)
    with faults.caught():
        filled = fit_optimizer(ds, machine.device)
    if config.gradient_cosine_every and ds["zero_optimization"]["stage"] == 3:
        faults.add(
            "road.gradient_cosine_every: not under ZeRO 3, whose weights are partitioned: use zero_optimization.stage 2 "
            "or less, or 0 here"
        )
    if getattr(objective, "source", None) == "average" and ds["zero_optimization"]["stage"] == 3:
        faults.add(
            "road.distill.source: average is not there under ZeRO 3, whose weights are partitioned: use zero_optimization.stage 2 "
            "or less, or teachers"
        )
    if config.join_micro_batches:
        alone = {
            "road.freelb": config.freelb is not None,
            "road.distill.layers": isinstance(objective, Taught) and objective.compared is not None,
            "road.distill.adversarial": adversarial_of(objective) is not None,
            "road.distill.neighbours": bool(neighbours_of(objective)),
            "pretraining": any(task.generated_by() is not None for task in found.values()),
            "ZeRO 3": fit_stage(ds, machine.processes)["zero_optimization"]["stage"] == 3,
        }
        for name in (name for name, there in alone.items() if there):
            faults.add(
                f"road.join_micro_batches: not with {name}, which takes each micro-batch by itself: leave one of them out"
            )
    return Settled(found, objective, ds, precision, filled)
