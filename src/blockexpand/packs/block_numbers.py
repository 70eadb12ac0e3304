"""A pack's tensors into blocks in memory, and a base's numbers in memory held against a pack's digests.

In: a donor in memory and a pack. Out: a block of the donor's making with the pack's numbers: the donor's are not copied
first, and bytes of the precision in memory are read straight to their place. Refused: weights that are no floats, a
model held in less than the pack's precision when its numbers are to be checked, and numbers that are others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from blockexpand.checkpoint import num_bytes
from blockexpand.checkpoint.header import open_to_read
from blockexpand.checkpoint.passes import new_hasher
from blockexpand.checkpoint.streams import read_whole
from blockexpand.errors import PackError
from blockexpand.families import Family
from blockexpand.families.modules import as_in_files, stack_of
from blockexpand.packs.compatibility import check_digests
from blockexpand.packs.encoding import piece_bytes
from blockexpand.packs.pack import Pack
from blockexpand.packs.weights import changed, decoded, raw_pieces
from blockexpand.records.plan import BlockTensor, NewBlock
from blockexpand.units import FLOATS, torch_dtype

Verify = Literal["donors", "all", "files", "none"]
"""What of a base in memory is held against a pack's digests."""


def filled_block(donor: nn.Module, family: Family, pack: Pack, block: NewBlock, *, checked: bool) -> nn.Module:
    """A block like the donor with the pack's numbers, in the donor's precision and place.

    Raises:
        PackError: the donor's weights are no floats, or the pack's bytes are not those it names.
    """
    tensors = {f"{block.id}.{tensor.tail}": tensor for tensor in pack.record.plan.tensors_of(block.donor)}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise PackError(
                f"the pack {pack.name!r} has {name!r} as {tensor.dtype}, which a model in memory holds as something "
                "else; expected floats; attach the pack on disk with `pack attach` and load that folder"
            )
    made = _like(donor, pack)
    targets, olds = views(made, family), views(donor, family)
    for name, tensor in tensors.items():
        _fill(targets[tensor.tail], pack, name, (tensor, olds[tensor.tail]), checked=checked)
    return made


def _like(donor: nn.Module, pack: Pack) -> nn.Module:
    """A deep copy of the donor with room for numbers, but not its own."""
    memo: dict[int, object] = {}
    for name, parameter in donor.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise PackError(
                f"the model holds {name!r} as {parameter.dtype}, and the pack {pack.name!r} has floats; expected the "
                "base unquantised; load it in bfloat16 or float32"
            )
        empty = nn.Parameter(torch.empty_like(parameter), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = empty
    return copy.deepcopy(donor, memo)


def views(block: nn.Module, family: Family) -> dict[str, Tensor]:
    """A block's parameters and stored buffers as the tensors of the files, by tail; views into it."""
    held = {name: tensor.detach() for name, tensor in (*block.named_parameters(), *block.named_buffers())}
    prefix = len(family.name_of(0, ""))
    return {
        name[prefix:]: view
        for tail, tensor in held.items()
        for name, view in as_in_files(family, 0, tail, tensor).items()
    }


def _fill(target: Tensor, pack: Pack, name: str, source: tuple[BlockTensor, Tensor], *, checked: bool) -> None:
    tensor, old = source
    straight = pack.record.encoding == "plain" and target.dtype == torch_dtype(tensor.dtype)
    if straight and target.device.type == "cpu" and target.is_contiguous() and target.numel():
        _read_into(target, pack, name, checked=checked)
        return

    def start() -> Iterator[bytes]:
        data, size = _bytes_of(old, tensor), piece_bytes(pack.record.encoding, tensor)
        return (bytes(data[at : at + size]) for at in range(0, len(data), size))

    begins = start if tensor.starts == "donor" else None
    pieces = decoded(pack, name, tensor, begins) if checked else raw_pieces(pack, name, tensor, begins)
    data = bytearray().join(pieces)
    if data:
        target.copy_(torch.frombuffer(data, dtype=torch_dtype(tensor.dtype)).view(tensor.shape))


def _read_into(target: Tensor, pack: Pack, name: str, *, checked: bool) -> None:
    """The file's bytes straight to where they stay."""
    entry, memory = pack.stored[name], _memory(target)
    with open_to_read(pack.folder / entry.file) as stream:
        read_whole(stream.fileno(), memory, entry.start, entry.file)
    if checked and _digest(memory) != pack.record.block_digests[name]:
        raise changed(pack, name)


def _memory(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _bytes_of(tensor: Tensor, planned: BlockTensor) -> memoryview:
    """A tensor in memory as the bytes that its file has."""
    return _memory(tensor.detach().to("cpu", torch_dtype(planned.dtype)).contiguous())


def _digest(data: memoryview) -> str:
    algorithm, hasher = new_hasher()
    hasher.update(data)
    return f"{algorithm}:{hasher.hexdigest()}"


def check_numbers(model: nn.Module, family: Family, pack: Pack, verify: Verify) -> None:
    """Hold the base's numbers, as they are in memory, against the pack's digests.

    Raises:
        PackError: they are others, or the model's precision is less than the pack's, so that they cannot be compared.
    """
    if verify in ("files", "none"):
        return
    plan, stack = pack.record.plan, stack_of(model, family)
    spelled = family.spelled_as_in(pack.record.base_digests)
    donors = {old for block in plan.new_blocks for old in (block.donor, max(block.after, 0))}
    digests = {}
    for old, module in enumerate(stack):
        whole = verify == "all" or old in donors
        held = views(module, family)
        for tensor in plan.tensors_of(old):
            if whole or len(tensor.shape) < 2:
                digests[spelled.name_of(old, tensor.tail)] = _checked_digest(held, tensor, pack)
    if verify == "all":
        digests |= _outer(model, family, pack)
    check_digests(pack, digests, f"this {type(model).__name__}")


def _checked_digest(held: dict[str, Tensor], tensor: BlockTensor, pack: Pack) -> str:
    found = held.get(tensor.tail)
    if found is None or tuple(found.shape) != tensor.shape:
        raise PackError(
            f"the pack {pack.name!r} is for blocks with {tensor.tail} of shape {list(tensor.shape)}, and the model has "
            f"{list(found.shape) if found is not None else 'none'}; expected the base it was trained on"
        )
    kind = torch_dtype(tensor.dtype) if tensor.dtype in FLOATS else found.dtype
    if found.dtype.itemsize < num_bytes(tensor.dtype, (1,)) or (found.dtype != kind and found.dtype.itemsize == 2):
        raise PackError(
            f"the model holds {tensor.tail} as {found.dtype}, and the pack {pack.name!r} is for a base of precision "
            f"{tensor.dtype}, so its numbers cannot be compared; expected that precision or a wider one; load it so, "
            "or use load_with_packs, which compares on disk"
        )
    return _digest(_bytes_of(found, tensor))


def _outer(model: nn.Module, family: Family, pack: Pack) -> dict[str, str]:
    """The digests of what is outside of the blocks, of what has the same name in memory as in the files."""
    dtypes = [tensor.dtype for tensor in pack.record.plan.tensors_of(0)]
    kind = torch_dtype(dtypes[0]) if dtypes[0] in FLOATS else torch.float32
    inside = family.stack.module + "."
    return {
        name: _digest(_memory(parameter.detach().to("cpu", kind).contiguous()))
        for name, parameter in model.named_parameters()
        if not name.startswith(inside) and name in pack.record.base_digests
    }
