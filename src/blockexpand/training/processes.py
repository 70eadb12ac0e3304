"""The processes of a run: one, or as many as torchrun started; and a model that is cut over them.

In: how this process was started; a trainee whose parameters have no memory yet. Out: this process's rank and device,
sums over all processes, and the trainee sharded by PyTorch's `fully_shard`, block by block: every parameter a DTensor
cut along its first dimension, its rows on this process read from the checkpoint, to the bit those that transformers
would load. A run of one process does no communication and takes the same path.

All passes go through a root module, because FSDP gathers parameters in the hooks of modules. FSDP2 shards each block
by itself, so running with some blocks left out (the bypass) runs the hooks of the others only. Refused: a parameter
that is not in the files under the name that the family knows, in another shape, or in a type that is more than a float.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from blockexpand.checkpoint import Checkpoint, open_checkpoint
from blockexpand.errors import BlockexpandError, TrainingError
from blockexpand.families import Family, family_for
from blockexpand.families.family import NUMBER
from blockexpand.live.device import choose_device
from blockexpand.live.parts import blocks_of
from blockexpand.training.arms import Trainee
from blockexpand.units import FLOATS

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
def join_world(asked: str = "auto") -> Generator[World]:
    """This process among those that torchrun started with it, on the device asked for; alone when it started none.

    Each process takes the accelerator of its local rank. A process group that is there already is used.

    Raises:
        DeviceError: the device is not there.
    """
    ours = not dist.is_initialized()
    if ours and not dist.is_torchelastic_launched():
        yield World(device=choose_device(asked))
        return
    local_rank = dist.get_node_local_rank(fallback_rank=0)
    device = choose_device(asked, local_rank)
    if device.type != "cpu":
        torch.accelerator.set_device_index(device)
    # Sums of a few numbers go over gloo on the host, so that they do not wait for the device's queue.
    if ours:
        own = "" if device.type == "cpu" else f",{device.type}:{dist.get_default_backend_for_device(device)}"
        dist.init_process_group(f"cpu:gloo{own}", timeout=_TIMEOUT)
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


class Root(nn.Module):
    """The models of a run under one roof: calling it with a function runs that inside FSDP's root hooks."""

    def __init__(self, *models: nn.Module) -> None:
        """Hold the models."""
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, function: Callable[..., T], *arguments: Any) -> T:
        """`function(*arguments)`, with the parameters outside the blocks gathered."""
        return function(*arguments)


def shard(trainee: Trainee, mesh: DeviceMesh, device: torch.device, dtype: torch.dtype) -> tuple[Trainee, Root]:
    """Cut the trainee's parameters over the mesh and give each process memory for its rows; nothing is read.

    Masters are float32; a block that trains is gathered in `dtype` and its gradients are summed in float32.
    Outside the blocks parameters are gathered as they are, so that the residual stream keeps the type it
    has on one process.
    """
    models = (trainee.model, *trainee.others)
    root = Root(*models)
    block_policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for model in models:
        for block in blocks_of(model):
            trained = any(p.requires_grad for p in block.parameters())
            fully_shard(block, mesh=mesh, mp_policy=block_policy if trained else MixedPrecisionPolicy())
    outer_policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(root, mesh=mesh, mp_policy=outer_policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the step's tokens, over all processes: gradients add up, nothing is averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    root._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
    _check_sharded(root, mesh)
    parameters = dict(trainee.model.named_parameters(remove_duplicate=False))
    trainable = {name: parameters[name] for name in trainee.trainable}
    return dataclasses.replace(trainee, trainable=trainable), root


def _check_sharded(root: nn.Module, mesh: DeviceMesh) -> None:
    """Sharding is asserted, never assumed: every parameter is cut along its rows over the whole mesh."""
    for name, parameter in root.named_parameters():
        assert isinstance(parameter, DTensor), f"{name} is a {type(parameter).__name__}, whole on every process"
        assert parameter.placements == (Shard(0),), f"{name} lies as {parameter.placements}"
        assert parameter.device_mesh == mesh, f"{name} is on {parameter.device_mesh}"
        rows = piece_of(parameter)
        assert len(rows.local) <= -(-parameter.shape[0] // mesh.size()), f"{name}: {len(rows.local)} rows here"


def sync_gradients(root: nn.Module, wanted: bool) -> None:
    """Whether the backward pass that comes sums its gradients over the processes; if not, each keeps them whole."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(wanted)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """What one process holds of a tensor: whole rows of it, or all of it."""

    local: Tensor
    """The rows, as they are held."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    first_row: int
    """The number of the first row held (0 for a tensor held whole)."""
    mine: bool
    """Whether this process is the one to write it: of what all hold, the first."""


def piece_of(tensor: Tensor, leads: bool = True) -> Piece:
    """What this process holds of a tensor.

    Args:
        tensor: One that is cut over a mesh, or whole on every process.
        leads: Whether this is the process that writes what all of them hold.
    """
    if not isinstance(tensor, DTensor):
        return Piece(local=tensor.detach(), shape=tuple(tensor.shape), first_row=0, mine=leads)
    local = tensor.to_local().detach()
    each = -(-tensor.shape[0] // tensor.device_mesh.size())  # as torch.chunk cuts
    first = min(each * tensor.device_mesh.get_local_rank(), tensor.shape[0])
    assert len(local) == min(each, tensor.shape[0] - first), f"{len(local)} rows from {first} of {tensor.shape}"
    return Piece(local=local, shape=tuple(tensor.shape), first_row=first, mine=len(local) > 0)


def like(rows: Tensor, tensor: Tensor) -> Tensor:
    """`rows`, which this process holds, as a tensor cut as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return rows
    return DTensor.from_local(
        rows, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The whole tensors, on the host of the first process; nothing elsewhere. Every process must call it."""
    gathered_here = {}
    for name, tensor in tensors.items():
        full = whole(tensor).detach()
        if world.leads:
            gathered_here[name] = full.cpu()
    return gathered_here


def drop_gathered(root: nn.Module) -> None:
    """Let the next pass gather every parameter anew.

    The outermost group stays gathered after a pass without a backward pass: what is put on its parameters then would
    not be seen.
    """
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor, put together where it is cut over a mesh. Every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def names_to_fill(model: nn.Module) -> list[str]:
    """The tensors that a model has from its files: parameters, of tied ones the first, and buffers that are saved."""
    parameters = dict(model.named_parameters())
    buffers = {name for name, _ in model.named_buffers()}
    return [*parameters, *(name for name in model.state_dict() if name in buffers)]


def fill(model: PreTrainedModel, names: list[str], folder: Path) -> int:
    """Read this process's rows of every named tensor; give back the bytes read.

    Args:
        model: Its parameters are cut over a mesh, or whole.
        names: As `names_to_fill` gave them before the model was sharded.
        folder: The checkpoint.

    Raises:
        TrainingError: a tensor cannot be found or read.
    """
    files = _Files(open_checkpoint(folder))
    family = family_for(files.checkpoint.config, str(folder), files.checkpoint.tensors)
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers())
    head = cast(nn.Linear, model.get_output_embeddings()).weight
    with torch.no_grad():
        for name in names:
            piece = piece_of(tensors[name])
            if piece.local.numel():
                piece.local.copy_(_value(name, tensors[name] is head, piece, family, files))
    return files.num_bytes_read


class _Files:
    """The files of a checkpoint, opened once each."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.num_bytes_read = 0
        self._open: dict[str, Any] = {}

    def rows(self, name: str, first: int, count: int) -> Tensor:
        entry = self.checkpoint.tensors[name]
        if entry.dtype not in FLOATS:
            raise TrainingError(
                f"{self.checkpoint.source} holds {name} in {entry.dtype}, which cannot be read piece by piece; "
                f"expected {', '.join(FLOATS)}; convert the checkpoint, or train in one process"
            )
        path = str(self.checkpoint.folder / entry.file)
        if path not in self._open:
            self._open[path] = safe_open(path, framework="pt")
        part = self._open[path].get_slice(name)[first : first + count]
        self.num_bytes_read += part.numel() * part.element_size()
        return part


def _value(name: str, is_head: bool, piece: Piece, family: Family, files: _Files) -> Tensor:
    """This process's rows of a tensor, put together from the files' tensors."""
    count = len(piece.local)
    prefix = family.stack.module + "."
    if name.startswith(prefix):
        index, _, tail = name[len(prefix) :].partition(".")
        group = next((g for g in family.block.in_memory if g.memory == tail), None)
        sources = group.files if group else (tail,)
        if NUMBER in sources[0].split("."):
            return torch.stack(
                [
                    _expert(family, int(index), [s.replace(NUMBER, str(expert)) for s in sources], piece, files)
                    for expert in range(piece.first_row, piece.first_row + count)
                ]
            )
        found = family.name_of(int(index), sources[0])
    else:
        found = _outer_name(name, is_head, family, files.checkpoint)
    _check_shape(name, found, piece.shape, files.checkpoint)
    return files.rows(found, piece.first_row, count)


def _expert(family: Family, block: int, tails: list[str], piece: Piece, files: _Files) -> Tensor:
    """One expert of a parameter that holds all of them: gate and up follow each other in its rows."""
    parts = []
    for tail in tails:
        name = family.name_of(block, tail)
        shape = (piece.shape[1] // len(tails), *piece.shape[2:])
        _check_shape(f"expert {tail}", name, shape, files.checkpoint)
        parts.append(files.rows(name, 0, shape[0]))
    return torch.cat(parts)


def _outer_name(name: str, is_head: bool, family: Family, checkpoint: Checkpoint) -> str:
    """The name in the files of a tensor outside the blocks."""
    module, tensors = (path.rpartition(".")[0] for path in (family.stack.module, family.stack.tensors))
    candidates = [name, *(family.outer.matrices[-1:] if is_head else ())]
    candidates += [short for short in (name.removeprefix("model."),) if short.startswith(family.outer.copied)]
    if name.startswith(f"{module}."):
        candidates.append(f"{tensors}.{name.removeprefix(f'{module}.')}".removeprefix("."))
    for candidate in candidates:
        if candidate in checkpoint.tensors:
            return candidate
    raise TrainingError(
        f"{checkpoint.source} has no tensor for the model's {name} (looked for {' and '.join(candidates)}), so "
        "several processes cannot each read their part of it; expected the names of its family; train in one process"
    )


def _check_shape(parameter: str, name: str, shape: tuple[int, ...], checkpoint: Checkpoint) -> None:
    entry = checkpoint.tensors.get(name)
    if entry is None or entry.shape != shape:
        found = f"shape {list(entry.shape)}" if entry else "no such tensor"
        raise TrainingError(
            f"{checkpoint.source} has {found} for {name}, and the model's {parameter} is {list(shape)}; expected the "
            "same; write or download the folder again"
        )
