"""The processes of a run: who this one is, and what they agree on."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from road_ds.common.errors import RoadError
from road_ds.common.heartbeat import Heartbeat

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """This process among the others. Words between ranks go over a CPU group: they never wait for the device."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    control: Any
    heartbeat: Heartbeat | None = None  # where there are others

    @classmethod
    def start(cls, patience: float = 1800.0) -> "Ranks":
        """Joins the launcher's processes, or stands alone without one. RoadError when the port is taken.

        patience: the seconds after which a process that gives no sign of life ends the others.
        """
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        if "RANK" not in os.environ:
            os.environ.update(alone, MASTER_PORT="0")  # whichever is free when it is opened
        cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
        if not cuda:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed  # after the environment: it looks for MPI and for accelerators without it

        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        else:
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = (
                False  # a minute of compiling that gloo does without
            )
        try:
            deepspeed.init_distributed("nccl" if cuda else "gloo", verbose=False)
        except dist.DistNetworkError as error:
            raise RoadError(
                f"the processes cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
                f"({str(error).splitlines()[0][:120]}): if the port is taken, add `--master_port N` after `deepspeed`"
            ) from None
        return cls(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_rank=int(os.environ["LOCAL_RANK"]),
            device=torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu"),
            # the others wait while one encodes; the heartbeat tells whether it is still there
            control=dist.new_group(backend="gloo", timeout=timedelta(days=1)),
            heartbeat=Heartbeat(patience) if dist.get_world_size() > 1 else None,
        )

    def leave(self) -> None:
        """Waits for all ranks and parts from them: none is missed any more."""
        self.barrier()
        if self.heartbeat:
            self.heartbeat.leave()

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier(group=self.control)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; the same answer on all."""
        if self.world_size == 1:
            return flag
        word = torch.tensor([int(flag)])
        dist.all_reduce(word, op=dist.ReduceOp.MAX, group=self.control)
        return bool(word.item())

    def first(self, word: str) -> str:
        """The word of the first rank that has one, "" when none has; the same answer on all."""
        return next(filter(None, self.gather(word))) if self.any(bool(word)) else ""

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def collect(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on rank 0; empty on the others."""
        if self.world_size == 1:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return values or []

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over ranks."""
        if self.world_size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def together(self, work: Callable[[], Result]) -> Result:
        """`work`'s result on every rank; done by each host's first rank before the others. Its RoadError reaches all."""
        result, fault = None, None
        for turn in (self.local_rank == 0, self.local_rank != 0):
            if turn:
                try:
                    result = work()
                except RoadError as error:
                    fault = str(error)
            faults = [f for f in self.gather(fault) if f is not None]
            if faults:
                raise RoadError(faults[0])
        assert result is not None
        return result

    def apart(self, work: Callable[[], Any]) -> None:
        """Has every rank do its own share of `work` at once. The RoadError of any reaches all."""
        fault = None
        try:
            work()
        except RoadError as error:
            fault = str(error)
        if faults := [f for f in self.gather(fault) if f is not None]:
            raise RoadError(faults[0])

    def agree(self, values: Mapping[str, Any]) -> None:
        """RoadError that names the key and both values when ranks differ in something that must be the same."""
        first, *others = self.gather(dict(values))
        for rank, other in enumerate(others, 1):
            for key in sorted({*first, *other}):
                if first.get(key) != other.get(key):
                    raise RoadError(
                        f"ranks disagree on {key}: rank 0 has {first.get(key)!r}, rank {rank} has {other.get(key)!r}: "
                        "every host needs the same configuration and the same rows"
                    )


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
