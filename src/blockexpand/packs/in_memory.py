"""Packs on a model in memory: put on, taken off, switched on and off while it runs.

In: a model that transformers loaded, and packs for it. Out: the same object with the packs' blocks, in the order of the
stacking rule (compatibility.py), each pack under its own name; a block's numbers go straight from the file to their
place where the precision is the file's. Refused: what does not belong together, weights held as other things than
floats, a model held in less than the pack's precision when its numbers are to be checked, a model whose new blocks
belong to no pack. After an error nothing has changed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from blockexpand import live
from blockexpand.checkpoint import Checkpoint, digest_tensors, num_bytes
from blockexpand.checkpoint.passes import new_hasher
from blockexpand.errors import PackError, PlanError, nearest
from blockexpand.expansion import combine_in_memory
from blockexpand.families import Family, family_for
from blockexpand.families.modules import as_in_files, config_entries, load_model, stack_of
from blockexpand.live.state import is_expanded
from blockexpand.packs.compatibility import check_digests, in_order
from blockexpand.packs.pack import Pack
from blockexpand.records.expansion import AttachedPack
from blockexpand.records.plan import BlockTensor, NewBlock, Plan
from blockexpand.units import FLOATS, torch_dtype

Verify = Literal["donors", "all", "files", "none"]
"""What of a base in memory is held against a pack's digests."""


@dataclass(frozen=True, kw_only=True)
class LivePack:
    """One pack on a model."""

    name: str
    """What it is called."""
    plan: Plan
    """Its own plan, for the base alone."""
    blocks: Mapping[str, nn.Module]
    """Its blocks by their own ids."""


@dataclass(frozen=True, kw_only=True)
class LivePacks:
    """All packs of a model."""

    packs: tuple[LivePack, ...]
    """In the order in which they stand."""
    ids: tuple[dict[str, str], ...]
    """For each of them, the id on the model of each block by its own id."""


_PACKS: WeakKeyDictionary[nn.Module, LivePacks] = WeakKeyDictionary()


def attach_to_model(model: nn.Module, packs: Sequence[Pack | str | Path], *, verify: Verify = "donors") -> nn.Module:
    """Put the packs' blocks into the model, in place, and return it; packs that it has stay, on or off as they were.

    Args:
        model: a base as transformers loaded it, or one with packs.
        packs: folders, or opened packs, in any order.
        verify: what of the base's numbers is held against the packs' digests. "donors": the blocks that new ones are
            copies of and stand on, and all vectors; "all": every tensor; "files": none, since its
            files were; "none": neither these nor the packs' own bytes.

    Raises:
        PackError: a pack does not belong to this model.
        LiveError: it is no model that we know.
    """
    there = _PACKS.get(model)
    if there is None and is_expanded(model):
        raise PackError(
            f"this {type(model).__name__} has new blocks that belong to no pack; expected a base, or a model with "
            "packs; call blockexpand.detach(model) first, or take them out with `pack extract`"
        )
    added = in_order(packs)
    before = disabled(model)
    for pack in added:
        if pack.name in attached(model):
            raise PackError(f"the model has a pack {pack.name!r} already; expected another name; detach it first")
    with live.bypass(model) if there else contextlib.nullcontext():
        family = family_for(config_entries(model), type(model).__name__)
        new = [_fitted(model, family, pack, verify) for pack in added]
    _put(model, [*(there.packs if there else ()), *new], before)
    return model


def detach_from_model(model: nn.Module, names: Collection[str] = ()) -> nn.Module:
    """Take the named packs off, or all of them; with none left the model is its base, to the bit.

    Raises:
        PackError: it has no such pack.
    """
    there = _known(model, names)
    left = [pack for pack in there.packs if names and pack.name not in names]
    before = [name for name in disabled(model) if name in {pack.name for pack in left}]
    _put(model, left, before)
    return model


def load_base_with_packs(base: Checkpoint, packs: Sequence[Pack], dtype: torch.dtype | None, device: str) -> nn.Module:
    """The base with packs that fit it, in memory; the numbers in the files are held against the packs' digests.

    Raises:
        PackError: they are others.
        LiveError: transformers cannot load it.
    """
    if packs:
        digests = {name: found.digest for name, found in digest_tensors(base).items()}
        for pack in packs:
            check_digests(pack, digests, base.source)
    loader = family_for(base.config, base.source, base.tensors).loader
    model = load_model(base.folder, dtype=dtype, device=device, loader=loader)
    # The files' numbers are the base's; those in memory may be rounded, and are not looked at again.
    return attach_to_model(model, packs, verify="files") if packs else model


def adopt_attached(model: nn.Module, packs: Sequence[AttachedPack]) -> None:
    """Make known which blocks of a model that was loaded from an attached folder are which pack's."""
    blocks = live.new_blocks(model)
    found = tuple(
        LivePack(name=pack.name, plan=pack.plan, blocks={own: blocks[held] for own, held in pack.blocks.items()})
        for pack in packs
    )
    live.guard(model)
    _PACKS[model] = LivePacks(packs=found, ids=tuple(pack.blocks for pack in packs))


def _put(model: nn.Module, packs: Sequence[LivePack], off: Collection[str]) -> None:
    """Make these the model's packs, those named in `off` switched off."""
    ordered = tuple(sorted(packs, key=lambda pack: pack.name))
    family = family_for(_base_config(model), type(model).__name__)
    combined = combine_in_memory(family, _base_config(model), [pack.plan for pack in ordered]) if ordered else None
    if model in _PACKS:
        live.detach(model)
        live.unguard(model)
        del _PACKS[model]
    if combined is None:
        return
    new = {ids[own]: b for p, ids in zip(ordered, combined.ids, strict=True) for own, b in p.blocks.items()}
    live.insert_blocks(model, combined.plan, new)
    live.guard(model)
    _PACKS[model] = LivePacks(packs=ordered, ids=combined.ids)
    disable(model, *off)


def _base_config(model: nn.Module) -> dict:
    if model not in _PACKS:
        return config_entries(model)
    with live.bypass(model):
        return config_entries(model)


# --- switches -----------------------------------------------------------------------------------------


def attached(model: nn.Module) -> tuple[str, ...]:
    """The names of the model's packs, on or off, in the order in which they stand; none for a base."""
    return tuple(pack.name for pack in _PACKS[model].packs) if model in _PACKS else ()


def disabled(model: nn.Module) -> tuple[str, ...]:
    """Those that are off."""
    if model not in _PACKS:
        return ()
    off, there = live.switched_off(model), _PACKS[model]
    return tuple(p.name for p, ids in zip(there.packs, there.ids, strict=True) if off >= set(ids.values()))


def enabled(model: nn.Module) -> tuple[str, ...]:
    """Those that are on."""
    off = disabled(model)
    return tuple(name for name in attached(model) if name not in off)


def enable(model: nn.Module, *names: str) -> None:
    """Switch packs on; all of them, if none is named.

    Raises:
        PackError: the model has no such pack.
    """
    _known(model, names)
    _set_enabled(model, {*enabled(model), *(names or attached(model))})


def disable(model: nn.Module, *names: str) -> None:
    """Switch packs off; nothing happens if none is named.

    Raises:
        PackError: the model has no such pack.
    """
    _known(model, names)
    _set_enabled(model, set(enabled(model)) - set(names))


def set_enabled(model: nn.Module, names: Collection[str]) -> None:
    """Switch exactly these packs on.

    Raises:
        PackError: the model has no such pack.
    """
    _known(model, names)
    _set_enabled(model, names)


@contextlib.contextmanager
def only(model: nn.Module, *names: str) -> Generator[nn.Module]:
    """Inside this context exactly these packs are on; with none, the model is its base.

    Raises:
        PackError: the model has no such pack.
    """
    before = set(enabled(model))
    set_enabled(model, names)
    try:
        yield model
    finally:
        _set_enabled(model, before)


def blocks_of(model: nn.Module, names: Collection[str]) -> frozenset[str]:
    """The ids, on the model, of all blocks of these packs.

    Raises:
        PackError: the model has no such pack.
    """
    there = _known(model, names)
    pairs = zip(there.packs, there.ids, strict=True)
    return frozenset(held for pack, ids in pairs if pack.name in names for held in ids.values())


def _set_enabled(model: nn.Module, on: Collection[str]) -> None:
    off = [name for name in attached(model) if name not in on]
    try:
        live.switch(model, blocks_of(model, off))
    except PlanError as error:
        raise PackError(f"the packs {', '.join(sorted(on))} cannot be on alone: {error}") from None


def _known(model: nn.Module, names: Collection[str]) -> LivePacks:
    if model not in _PACKS:
        raise PackError(
            f"this {type(model).__name__} has no packs; expected one from attach or load_with_packs; attach one"
        )
    held = [pack.name for pack in _PACKS[model].packs]
    for name in names:
        if name not in held:
            raise PackError(f"the model has no pack {name!r}; expected one that was attached; {nearest(name, held)}")
    return _PACKS[model]


# --- a pack's blocks, and the base's numbers ----------------------------------------------------------


def _fitted(model: nn.Module, family: Family, pack: Pack, verify: Verify) -> LivePack:
    """The pack's blocks as modules of this model, once it is the pack's base as far as is looked at."""
    base, name = pack.record.plan.base, type(model).__name__
    stack = stack_of(model, family)
    for what, expected, found in (
        ("for family", base.family, family.name),
        ("for a base of so many blocks:", base.num_blocks, len(stack)),
    ):
        if expected != found:
            raise PackError(
                f"the pack {pack.name!r} is {what} {expected}, and this {name} has {found}; expected the base it was "
                f"trained on, {pack.record.card.base_model or base.source}; attach it to that one"
            )
    if verify in ("donors", "all"):
        _check_numbers(model, family, pack, whole=verify == "all")
    blocks = {
        block.id: _filled_block(stack[block.donor], family, pack, block, checked=verify != "none")
        for block in pack.record.plan.new_blocks
    }
    return LivePack(name=pack.name, plan=pack.record.plan, blocks=blocks)


def _filled_block(donor: nn.Module, family: Family, pack: Pack, block: NewBlock, *, checked: bool) -> nn.Module:
    """A block like the donor with the pack's numbers, in the donor's precision and place."""
    tensors = {f"{block.id}.{tensor.tail}": tensor for tensor in pack.record.plan.tensors_of(block.donor)}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise PackError(
                f"the pack {pack.name!r} has {name!r} as {tensor.dtype}, which a model in memory holds as something "
                "else; expected floats; attach the pack on disk with `pack attach` and load that folder"
            )
    made = _empty_like(donor, pack)
    targets = _views(made, family)
    for name, tensor in tensors.items():
        data = bytearray(pack.stored[name].num_bytes)
        _read(pack, name, data, checked=checked)
        if data:
            values = torch.frombuffer(data, dtype=torch_dtype(tensor.dtype)).view(tensor.shape)
            targets[tensor.tail].copy_(values)
    return made


def _read(pack: Pack, name: str, data: bytearray, *, checked: bool) -> None:
    """A tensor's bytes, read in one go and held against their digest."""
    entry, left = pack.stored[name], memoryview(data)
    with open(pack.folder / entry.file, "rb", buffering=0) as stream:
        stream.seek(entry.start)
        while left:
            got = stream.readinto(left)
            assert got, f"{entry.file} ended early"
            left = left[got:]
    if checked:
        pack.check_digest(name, _digest(memoryview(data)))


def _empty_like(donor: nn.Module, pack: Pack) -> nn.Module:
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


def _views(block: nn.Module, family: Family) -> dict[str, Tensor]:
    """A block's parameters and stored buffers as the tensors of the files, by tail; views into it."""
    held = {name: tensor.detach() for name, tensor in (*block.named_parameters(), *block.named_buffers())}
    prefix = len(family.name_of(0, ""))
    return {
        name[prefix:]: view
        for tail, tensor in held.items()
        for name, view in as_in_files(family, 0, tail, tensor).items()
    }


def _check_numbers(model: nn.Module, family: Family, pack: Pack, *, whole: bool) -> None:
    """Hold the base's numbers, as they are in memory, against the pack's digests."""
    plan, digests = pack.record.plan, {}
    spelled = family.spelled_as_in(pack.record.base_digests)
    donors = {old for block in plan.new_blocks for old in (block.donor, max(block.after, 0))}
    for old, module in enumerate(stack_of(model, family)):
        held = _views(module, family)
        for tensor in plan.tensors_of(old):
            if whole or old in donors or len(tensor.shape) < 2:
                digests[spelled.name_of(old, tensor.tail)] = _checked_digest(held, tensor, pack)
    if whole:
        digests |= _outer_digests(model, family, pack)
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
    return _digest(_bytes_of(found, torch_dtype(tensor.dtype)))


def _outer_digests(model: nn.Module, family: Family, pack: Pack) -> dict[str, str]:
    """The digests of what is outside of the blocks, of what has the same name in memory as in the files."""
    stored = next(tensor.dtype for tensor in pack.record.plan.tensors_of(0))
    kind = torch_dtype(stored) if stored in FLOATS else torch.float32
    inside = family.stack.module + "."
    return {
        name: _digest(_bytes_of(parameter, kind))
        for name, parameter in model.named_parameters()
        if not name.startswith(inside) and name in pack.record.base_digests
    }


def _bytes_of(tensor: Tensor, kind: torch.dtype) -> memoryview:
    """A tensor in memory as the bytes that its file has."""
    return memoryview(tensor.detach().to("cpu", kind).contiguous().reshape(-1).view(torch.uint8).numpy())


def _digest(data: memoryview) -> str:
    algorithm, hasher = new_hasher()
    hasher.update(data)
    return f"{algorithm}:{hasher.hexdigest()}"
