"""A model over the processes of a run: PyTorch's `fully_shard`, block by block, and whole rows of its tensors.

In: a trainee whose parameters have no memory yet. Out: the same trainee with every parameter a DTensor cut
along its first dimension, its rows on this process read from the checkpoint (see filling.py), and a root
module through which every forward pass goes, because FSDP gathers parameters in the hooks of modules.

FSDP2 shards each block by itself, so running with some blocks left out (the bypass) runs the hooks of the
others only. Frozen and trained parameters may stand side by side: only those that train are reduced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedModel

from blockexpand.training.arms.trainee import Trainee
from blockexpand.training.world import World

T = TypeVar("T")


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


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The model's blocks."""
    return list(cast(nn.ModuleList, model.get_decoder().layers))


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
    whole = {}
    for name, tensor in tensors.items():
        full = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
        if world.leads:
            whole[name] = full.cpu()
    return whole


def as_number(tensor: Tensor) -> float:
    """The value of a scalar that may be cut over a mesh. Every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).item()
