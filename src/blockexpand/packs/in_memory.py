"""Packs on a model in memory: put on, taken off, switched on and off and scaled while it runs.

In: a model that transformers loaded, and packs for it. Out: the same object with the packs' blocks, in the order of the
stacking rule (fitting.py), each pack under its own name. Refused: what does not belong together, weights held as other
things than floats, a model whose new blocks belong to no pack. After an error nothing has changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

from blockexpand import live
from blockexpand.errors import PackError, PlanError, nearest
from blockexpand.expansion import combine_in_memory
from blockexpand.families import Family, family_for
from blockexpand.families.modules import config_entries, stack_of
from blockexpand.live.state import expanded, is_expanded
from blockexpand.packs.block_numbers import Verify, check_numbers, filled_block
from blockexpand.packs.compatibility import in_order
from blockexpand.packs.gains import Writer, gain_of, set_gain, writers_of
from blockexpand.packs.pack import Pack
from blockexpand.packs.scale import check_gain, check_silent
from blockexpand.records.expansion import AttachedPack
from blockexpand.records.plan import Plan


@dataclass(frozen=True, kw_only=True)
class _Worn:
    """One pack on a model."""

    name: str
    """What it is called."""
    plan: Plan
    """Its own plan, for the base alone."""
    blocks: Mapping[str, nn.Module]
    """Its blocks by their own ids."""


@dataclass(frozen=True, kw_only=True)
class _Wearing:
    """All packs of a model."""

    packs: tuple[_Worn, ...]
    """In the order in which they stand."""
    ids: tuple[dict[str, str], ...]
    """For each of them, the id on the model of each block by its own id."""


_WEARING: WeakKeyDictionary[nn.Module, _Wearing] = WeakKeyDictionary()


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
    worn = _WEARING.get(model)
    if worn is None and is_expanded(model):
        raise PackError(
            f"this {type(model).__name__} has new blocks that belong to no pack; expected a base, or a model with "
            "packs; call blockexpand.detach(model) first, or take them out with `pack extract`"
        )
    opened = in_order(packs)
    before = disabled(model) if worn else ()
    held = {pack.name for pack in worn.packs} if worn else set()
    for pack in opened:
        if pack.name in held:
            raise PackError(f"the model has a pack {pack.name!r} already; expected another name; detach it first")
    with live.bypass(model) if worn else contextlib.nullcontext():
        family = family_for(config_entries(model), type(model).__name__)
        added = [_fitted(model, family, pack, verify) for pack in opened]
    _wear(model, [*(worn.packs if worn else ()), *added], before)
    return model


def detach_from_model(model: nn.Module, names: Collection[str] = ()) -> nn.Module:
    """Take the named packs off, or all of them; with none left the model is its base, to the bit.

    Raises:
        PackError: it has no such pack.
    """
    worn = _worn(model, names)
    left = [pack for pack in worn.packs if names and pack.name not in names]
    before = [name for name in disabled(model) if name in {pack.name for pack in left}]
    _wear(model, left, before)
    return model


def _wear(model: nn.Module, packs: Sequence[_Worn], off: Collection[str]) -> None:
    """Make these the model's packs, those named in `off` switched off."""
    ordered = tuple(sorted(packs, key=lambda pack: pack.name))
    family = family_for(_base_config(model), type(model).__name__)
    combined = combine_in_memory(family, _base_config(model), [pack.plan for pack in ordered]) if ordered else None
    if model in _WEARING:
        live.detach(model)
        live.unguard(model)
        del _WEARING[model]
    if combined is None:
        return
    new = {ids[own]: b for p, ids in zip(ordered, combined.ids, strict=True) for own, b in p.blocks.items()}
    live.insert_blocks(model, combined.plan, new)
    live.guard(model, _gain_words)
    _WEARING[model] = _Wearing(packs=ordered, ids=combined.ids)
    disable(model, *off)


def _base_config(model: nn.Module) -> dict:
    if model not in _WEARING:
        return config_entries(model)
    with live.bypass(model):
        return config_entries(model)


def _fitted(model: nn.Module, family: Family, pack: Pack, verify: Verify) -> _Worn:
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
    check_numbers(model, family, pack, verify)
    blocks = {
        block.id: filled_block(stack[block.donor], family, pack, block, checked=verify != "none")
        for block in pack.record.plan.new_blocks
    }
    return _Worn(name=pack.name, plan=pack.record.plan, blocks=blocks)


def adopt_attached(model: nn.Module, packs: Sequence[AttachedPack]) -> None:
    """Make known which blocks of a model that was loaded from an attached folder are which pack's."""
    blocks = live.new_blocks(model)
    worn = tuple(
        _Worn(name=pack.name, plan=pack.plan, blocks={own: blocks[held] for own, held in pack.blocks.items()})
        for pack in packs
    )
    live.guard(model, _gain_words)
    _WEARING[model] = _Wearing(packs=worn, ids=tuple(pack.blocks for pack in packs))


def attached(model: nn.Module) -> tuple[str, ...]:
    """The names of the model's packs, on or off, in the order in which they stand; none for a base."""
    return tuple(pack.name for pack in _WEARING[model].packs) if model in _WEARING else ()


def disabled(model: nn.Module) -> tuple[str, ...]:
    """Those that are off."""
    if model not in _WEARING:
        return ()
    off, worn = live.switched_off(model), _WEARING[model]
    return tuple(p.name for p, ids in zip(worn.packs, worn.ids, strict=True) if off >= set(ids.values()))


def enabled(model: nn.Module) -> tuple[str, ...]:
    """Those that are on."""
    off = disabled(model)
    return tuple(name for name in attached(model) if name not in off)


def enable(model: nn.Module, *names: str) -> None:
    """Switch packs on; all of them, if none is named.

    Raises:
        PackError: the model has no such pack.
    """
    _worn(model, names)
    _set_enabled(model, {*enabled(model), *(names or attached(model))})


def disable(model: nn.Module, *names: str) -> None:
    """Switch packs off; nothing happens if none is named.

    Raises:
        PackError: the model has no such pack.
    """
    _worn(model, names)
    _set_enabled(model, set(enabled(model)) - set(names))


@contextlib.contextmanager
def only(model: nn.Module, *names: str) -> Generator[nn.Module]:
    """Inside this context exactly these packs are on; with none, the model is its base.

    Raises:
        PackError: the model has no such pack.
    """
    _worn(model, names)
    before = set(enabled(model))
    _set_enabled(model, set(names))
    try:
        yield model
    finally:
        _set_enabled(model, before)


def gains(model: nn.Module) -> dict[str, float]:
    """By what each of the model's packs is scaled, by name: 1 as it was attached. Empty for a base."""
    packs = _WEARING[model].packs if model in _WEARING else ()
    return {pack.name: gain_of(next(iter(pack.blocks.values()))) for pack in packs}


def scale(model: nn.Module, name: str, by: float) -> None:
    """Let a pack's blocks write `by` times what they did when they were attached, until it is scaled again.

    It always begins from the numbers that were attached: scaled twice is scaled as the second time, and by 1 they are
    back, every bit. The writers' are kept meanwhile; what training does to them while they are scaled is lost.

    Raises:
        PackError: the model has no such pack, the gain is no scale, or it is of an ablation.
    """
    check_gain(by, f"the pack {name!r}")
    for block, writers in writers_in(model, name):
        set_gain(block, writers, by)


@contextlib.contextmanager
def scaled(model: nn.Module, by: Mapping[str, float]) -> Generator[nn.Module]:
    """Inside this context these packs are scaled so; behind it they are as before.

    Raises:
        PackError: as `scale`; then nothing has changed.
    """
    _worn(model, by)
    before = gains(model)
    try:
        for name, gain in by.items():
            scale(model, name, gain)
        yield model
    finally:
        for name in by:
            scale(model, name, before[name])


def writers_in(model: nn.Module, name: str) -> list[tuple[nn.Module, tuple[Writer, ...]]]:
    """The blocks of a pack, each with what writes to the residual stream.

    Raises:
        PackError: the model has no such pack, or none of its tensors is known to be the last on its way.
    """
    pack = next(worn for worn in _worn(model, [name]).packs if worn.name == name)
    check_silent(pack.plan, name)
    donors, family = {block.id: block.donor for block in pack.plan.new_blocks}, expanded(model).family
    return [
        (module, writers_of(module, family, pack.plan.tensors_of(donors[own]))) for own, module in pack.blocks.items()
    ]


def _gain_words(model: nn.Module) -> str:
    """What a KV cache depends on besides which packs are on."""
    return ", ".join(f"{name} by {gain}" for name, gain in gains(model).items() if gain != 1)


def blocks_of(model: nn.Module, names: Collection[str]) -> frozenset[str]:
    """The ids, on the model, of all blocks of these packs.

    Raises:
        PackError: the model has no such pack.
    """
    worn = _worn(model, names)
    pairs = zip(worn.packs, worn.ids, strict=True)
    return frozenset(held for pack, ids in pairs if pack.name in names for held in ids.values())


def _set_enabled(model: nn.Module, on: Collection[str]) -> None:
    off = [name for name in attached(model) if name not in on]
    try:
        live.switch(model, blocks_of(model, off))
    except PlanError as error:
        raise PackError(f"the packs {', '.join(sorted(on))} cannot be on alone: {error}") from None


def _worn(model: nn.Module, names: Collection[str]) -> _Wearing:
    if model not in _WEARING:
        raise PackError(
            f"this {type(model).__name__} has no packs; expected one from attach or load_with_packs; attach one"
        )
    held = [pack.name for pack in _WEARING[model].packs]
    for name in names:
        if name not in held:
            raise PackError(f"the model has no pack {name!r}; expected one that was attached; {nearest(name, held)}")
    return _WEARING[model]
