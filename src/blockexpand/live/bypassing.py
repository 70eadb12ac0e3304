"""The base inside the expanded model: for a while, or for good.

In: a model that `expand_live`, `adopt` or `load` knows. Out: the same object, running as its base: the stack
without the new blocks, the old blocks with the base's indices for the KV cache, the base's config entries.
Nothing is copied, so it costs a few assignments for each block, and the result is the base to the bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from blockexpand.errors import LiveError
from blockexpand.expansion import base_entries
from blockexpand.families.modules import config_entries, put_stack, set_config
from blockexpand.live.state import Expanded, expanded, forget
from blockexpand.live.switching import put_blocks, switch, switched_off

_DEPTH: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many bypasses each model is in; only the outermost changes anything."""


@contextlib.contextmanager
def bypass(model: nn.Module) -> Generator[nn.Module]:
    """Inside this context the model is its base. Contexts may be nested; errors leave the model whole.

    It is the same object, so only one thread may use it meanwhile, and a KV cache filled inside must not be
    used outside. Switching to train or eval mode inside reaches the new blocks on leaving.

    Raises:
        LiveError: the model is not known to be expanded.
    """
    known = expanded(model)
    depth = _DEPTH.get(model, 0)
    _DEPTH[model] = depth + 1
    try:
        if depth:
            yield model
        else:
            with _as_base(model, known):
                yield model
    finally:
        _DEPTH[model] = depth


@contextlib.contextmanager
def _as_base(model: nn.Module, known: Expanded) -> Generator[None]:
    before = switched_off(model)
    put_blocks(model, known, frozenset(known.new))
    try:
        yield
    finally:
        put_blocks(model, known, before)


def detach(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Take the new blocks out for good; give back their tensors by block id.

    The model is then its base, to the bit, and may be expanded again. Which parameters require gradient stays
    as it is.

    Raises:
        LiveError: the model is not known to be expanded, or is being bypassed.
    """
    known = expanded(model)
    if _DEPTH.get(model, 0):
        raise LiveError(
            f"this {type(model).__name__} is inside {_DEPTH[model]} bypass, which would put the new blocks back; "
            "expected detach outside of it; leave the context first"
        )
    switch(model, ())
    tensors = {name: block.state_dict() for name, block in known.new.items()}
    set_config(model, known.family, base_entries(known.family, known.plan, config_entries(model)))
    put_stack(model, known.family, known.old)
    forget(model)
    return tensors
