"""The first-batch guard: kernels that are wrong on this machine are noticed before they train anything."""

from road_kernels import KernelMismatch

from road_ds.common.errors import RankError
from road_ds.common.log import warn
from road_ds.data.batch import Batch
from road_ds.distillation.objective import Fused, Loss, Objective, Teaching
from road_ds.tasks.outputs import Outputs


class Guarded:
    """An objective whose kernels are held against their definition on the first batch of each data set."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.seen: set[str] = set()

    def __call__(self, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float) -> Loss:
        """The objective's loss. On a mismatch the definition takes over, or RankError, as `road.distill.on_mismatch` says."""
        if isinstance(self.objective, Fused) and batch.dataset not in self.seen:
            self.seen.add(batch.dataset)
            self.objective = checked(self.objective, outputs, teaching, batch, progress)
        return self.objective(outputs, teaching, batch, progress)


def checked(objective: Fused, outputs: Outputs, teaching: Teaching | None, batch: Batch, progress: float) -> Objective:
    """The same objective, or one without kernels where they are wrong on this batch."""
    try:
        objective.check(outputs, teaching, batch, progress)
    except KernelMismatch as error:
        fault = f"{batch.dataset}: {error}"
        if objective.on_mismatch == "stop":
            raise RankError(f"{fault} (road.distill.on_mismatch is stop)") from None
        warn(f"{fault} The run goes on without the kernel.", everywhere=True)
        return objective.model_copy(update={"kernels": "torch"})
    return objective
