"""The processes of a run, seen from one of them: one, or as many as torchrun started.

In: how this process was started. Out: its rank, its device, the mesh over which parameters are sharded, and
sums over all processes. A run of one process does no communication and takes the same path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from blockexpand.errors import BlockexpandError, TrainingError

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(hours=2)
"""The first process works alone while it samples self-written text and while it ships the model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is among those of the run."""

    rank: int = 0
    size: int = 1
    device: torch.device
    mesh: DeviceMesh | None = None
    """None in a run of one process: nothing is sharded then."""
    local_size: int = 1
    """Processes on this machine, which share its memory."""

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes records, metrics and the shipped model, and talks to people."""
        return self.rank == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all processes (float64)."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1))

    def first(self, work: Callable[[], T]) -> T | None:
        """Let the first process do something while the others wait; an error of its ends them all.

        Raises:
            TrainingError: in the other processes, when the first one's work failed.
        """
        result: T | None = None
        if not self.leads:
            if self.total([0.0])[0]:
                raise TrainingError("the first process ended the run; its message says why")
            return result
        try:
            result = work()
        except (BlockexpandError, OSError):
            self.total([1.0])
            raise
        self.total([0.0])
        return result


@contextlib.contextmanager
def join_world() -> Generator[World]:
    """This process among those that torchrun started with it; alone when it started none.

    On CUDA each process takes the device of its local rank. A process group that is there already is used.
    """
    cuda = torch.cuda.is_available()
    ours = not dist.is_initialized()
    if ours and not dist.is_torchelastic_launched():
        yield World(device=torch.device("cuda" if cuda else "cpu"))
        return
    local_rank = dist.get_node_local_rank(fallback_rank=0)
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    # Sums of a few numbers go over gloo on the host, so that they do not wait for the device's queue.
    if ours:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
    size = dist.get_world_size()
    mesh = init_device_mesh(device.type, (size,)) if size > 1 else None
    world = World(rank=dist.get_rank(), size=size, device=device, mesh=mesh)
    yield dataclasses.replace(world, local_size=_local_size(local_rank, world))
    if ours:  # and not after an error: the others may be gone, and the process ends anyway
        dist.destroy_process_group()


def _local_size(local_rank: int, world: World) -> int:
    """Processes on this machine: one more than the largest local rank when machines are alike."""
    if world.size == 1:
        return 1
    largest = torch.tensor(local_rank)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest) + 1
