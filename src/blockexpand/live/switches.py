"""Some or all of the new blocks off and on again, while the model runs: switch, bypass, detach.

In: a model that `expand_live`, `adopt` or `load` knows, and which of its new blocks are off. Out: the same object,
running as the model that has only the others: its stack, its indices for the KV cache, its config. With all of them
off it is its base, to the bit. Nothing is copied, so it costs a few assignments for each block.
Refused: a KV cache that was filled with other blocks on, since its entries belong to another model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from blockexpand.errors import LiveError, nearest
from blockexpand.expansion import base_entries, stack_entries
from blockexpand.families import prefixed, with_entries
from blockexpand.families.modules import config_entries, put_stack, set_config, stack_of
from blockexpand.live.state import Expanded, expanded, forget, switched_off

M = TypeVar("M", bound=nn.Module)

_FILLED: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()
"""For each KV cache that a guarded model filled, the blocks that were off."""
_GUARDED: WeakKeyDictionary[nn.Module, tuple[Any, ...]] = WeakKeyDictionary()
"""The handles of each guarded model's hooks."""


def switch(model: nn.Module, off: Collection[str]) -> None:
    """Run the model without these of its new blocks, until it is switched again; with none off it is whole.

    Which parameters require gradient stays as it is. A KV cache filled before must not be used after: see `guard`.

    Raises:
        LiveError: the model is not known to be expanded, or has no such block.
        PlanError: its config cannot state the stack that is left.
    """
    known = expanded(model)
    for name in off:
        if name not in known.new:
            raise LiveError(
                f"no new block {name!r} in this {type(model).__name__}; expected one that the plan inserted; "
                f"{nearest(name, known.new)}"
            )
    put_blocks(model, known, frozenset(off))


def put_blocks(model: nn.Module, known: Expanded, off: frozenset[str]) -> None:
    """Make the stack the one without these blocks; nothing happens when it is that already."""
    before = known.off
    if off == before:
        return
    install_output_hooks(model, known)
    entries = _entries(model, known, off)
    mode = stack_of(model, known.family).training
    set_config(model, known.family, entries)
    gone = {known.new[name] for name in off}
    put_stack(model, known.family, [block for block in known.blocks if block not in gone])
    known.modes |= dict.fromkeys(off - before, mode)
    for name in before - off:
        if known.modes.pop(name) != mode:
            known.new[name].train(mode)
    known.off = off


def _entries(model: nn.Module, known: Expanded, off: frozenset[str]) -> dict[str, Any]:
    """The text settings of the stack without these blocks."""
    family, config = known.family, config_entries(model)
    if not known.off:
        known.of_base = base_entries(family, known.plan, config)
        known.of_whole = {key: family.text(config)[key] for key in known.of_base}
    if not off:
        return known.of_whole
    if off == frozenset(known.new):
        return known.of_base
    kept = [entry.source for entry in known.plan.stack if entry.new is None or entry.new.id not in off]
    of_base = with_entries(config, prefixed(family.path_of(config), known.of_base))
    return {**known.of_base, **stack_entries(family, of_base, kept)}


def install_output_hooks(model: nn.Module, known: Expanded) -> None:
    """Have transformers put its output hooks on every block now.

    It does so once for each model, at the first request for hidden states. If that came while blocks are off, they
    would be missed for ever.
    """
    from transformers import PreTrainedModel
    from transformers.utils.output_capturing import maybe_install_capturing_hooks

    # On the module that holds the stack, as its own forward would: on the outer one they would come twice.
    owner = model.get_submodule(known.family.stack.module.rpartition(".")[0])
    if isinstance(owner, PreTrainedModel):
        maybe_install_capturing_hooks(owner)


def guard(model: nn.Module) -> None:
    """From now on refuse a KV cache that was filled while other blocks were on."""
    if model not in _GUARDED:
        before = model.register_forward_pre_hook(_refuse_other_cache, with_kwargs=True)
        after = model.register_forward_hook(_note_cache)
        _GUARDED[model] = (before, after)


def unguard(model: nn.Module) -> None:
    """Take the guard away again."""
    for handle in _GUARDED.pop(model, ()):
        handle.remove()


def _refuse_other_cache(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    del args
    cache = kwargs.get("past_key_values") if kwargs.get("past_key_values") is not None else kwargs.get("cache")
    if cache is None or isinstance(cache, tuple | list):
        return
    now = switched_off(model)
    before = _FILLED.setdefault(cache, now)
    if before != now and cache.get_seq_length() > 0:
        was, are = (", ".join(sorted(off)) or "none" for off in (before, now))
        raise LiveError(
            f"this KV cache was filled with the new blocks {was} off, and now {are} are; expected one of the same "
            "model; begin a new cache from the first token after switching"
        )
    _FILLED[cache] = now


def _note_cache(model: nn.Module, args: Any, output: Any) -> None:
    del args
    # By the name that is there: transformers 5.24 calls it `cache`, and says of the older name that it is deprecated.
    named = (output[name] for name in ("cache", "past_key_values") if isinstance(output, dict) and name in output)
    cache = next(named, None)
    if cache is not None and not isinstance(cache, tuple | list):
        _FILLED[cache] = switched_off(model)


@contextlib.contextmanager
def bypass(model: M) -> Generator[M]:
    """Inside this context the model is its base. Contexts may be nested; errors leave the model whole.

    It is the same object, so only one thread may use it meanwhile, and a KV cache filled inside must not be
    used outside. Switching to train or eval mode inside reaches the new blocks on leaving.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    known = expanded(model)
    before = known.off
    if not known.num_bypasses:
        put_blocks(model, known, frozenset(known.new))
    known.num_bypasses += 1
    try:
        yield model
    finally:
        known.num_bypasses -= 1
        if not known.num_bypasses:
            put_blocks(model, known, before)


def detach(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Take the new blocks out for good; give back their tensors by block id.

    The model is then its base, to the bit, and may be expanded again. Which parameters require gradient stays
    as it is.

    Raises:
        LiveError: the model is not known to be expanded, or is being bypassed.
    """
    known = expanded(model)
    if known.num_bypasses:
        raise LiveError(
            f"this {type(model).__name__} is inside {known.num_bypasses} bypass, which would put the new blocks back; "
            "expected detach outside of it; leave the context first"
        )
    switch(model, ())
    tensors = {name: block.state_dict() for name, block in known.new.items()}
    set_config(model, known.family, base_entries(known.family, known.plan, config_entries(model)))
    put_stack(model, known.family, known.old)
    forget(model)
    return tensors
