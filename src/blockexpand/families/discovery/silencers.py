"""Which tensors of a block write to the residual stream: the last ones on the way to it.

In: a small model that runs, and its stack. Out: for each block the tensors, by their names in memory, that make it
an identity, and what each must be then: 0, or -1 for a gain that is stored as gain minus one. It is found by trying:
all tensors at zero, the block gives back its input; then each gets its numbers back, in the order in which the block
uses them, as long as the block stays an identity. What must stay is the last on each way, so behind a projection
that a norm follows it is the norm's gain. Refused, as `FamilyError` with the reason: a block that is no identity
whatever its tensors are, and blocks that do not run once each, in their order.

Shapes: B = 1 sequence, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from blockexpand.errors import FamilyError
from blockexpand.families.discovery.trial_model import attempted, run


@dataclass(frozen=True, kw_only=True)
class Call:
    """One run of one block."""

    args: tuple[Any, ...]
    """What it was given."""
    kwargs: Mapping[str, Any]
    """And by name."""
    output: Any
    """What it gave."""


def record_calls(model: nn.Module, path: str, tokens_BT: Tensor) -> list[Call]:
    """Run the model; what each block was given and gave.

    Raises:
        FamilyError: blocks do not run once each, in their order.
    """
    # `children()` would name a block that stands at two places once.
    stack = list(cast(nn.ModuleList, model.get_submodule(path)))
    if len({id(block) for block in stack}) != len(stack):
        raise FamilyError("one block stands at several places of the stack")
    order: list[int] = []
    calls: list[Call] = []

    def note(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            order.append(index)
            calls.append(Call(args=args, kwargs=kwargs, output=output))

        return hook

    handles = [block.register_forward_hook(note(i), with_kwargs=True) for i, block in enumerate(stack)]
    try:
        run(model, tokens_BT)
    finally:
        for handle in handles:
            handle.remove()
    if order != list(range(len(stack))):
        raise FamilyError(f"its {len(stack)} blocks do not run once each in their order (but {order[:8]}...)")
    return calls


def silencing_of(block: nn.Module, call: Call) -> dict[str, float]:
    """The tensors, by their names in memory, that make this block an identity, and the number each must hold.

    Raises:
        FamilyError: none do.
    """
    stream_BTH = _stream(call)
    parameters = dict(block.named_parameters())
    kept = {name: p.data.clone() for name, p in parameters.items()}

    def silent() -> bool:
        with torch.no_grad():
            given_BTH = _first(block(*call.args, **call.kwargs))
        return given_BTH.shape == stream_BTH.shape and torch.equal(given_BTH, stream_BTH)

    with attempted("a block of it does not run by itself"):
        order = _order_of_use(block, call, parameters)
        try:
            for parameter in parameters.values():
                parameter.data.zero_()
            if not silent():
                raise FamilyError(_why_never(block, call, stream_BTH))
            found = dict.fromkeys(order, 0.0)
            for position, name in enumerate(order):
                before = found.pop(name)
                parameters[name].data.copy_(kept[name])
                if silent():
                    continue
                # With its numbers the block is no identity: but it may be with a later gain at -1.
                for gain in (n for n in order[position + 1 :] if parameters[n].ndim == 1 and found.get(n) == 0.0):
                    parameters[gain].data.fill_(-1.0)
                    if silent():
                        found[gain] = -1.0
                        break
                    parameters[gain].data.zero_()
                else:
                    parameters[name].data.fill_(before)
                    found[name] = before
        finally:
            for name, parameter in parameters.items():
                parameter.data.copy_(kept[name])
    return {name: found[name] for name in order if name in found}


def _why_never(block: nn.Module, call: Call, stream_BTH: Tensor) -> str:
    with torch.no_grad():
        given_BTH = _first(block(*call.args, **call.kwargs))
    if given_BTH.shape != stream_BTH.shape:
        return "a block's output has another shape than its input"
    what = "does not give back its input" if bool(given_BTH.any()) else "gives zeros, not its input"
    return f"with all its tensors at zero a block {what}: its output is not x + f(x)"


def _stream(call: Call) -> Tensor:
    """The hidden states that went in."""
    tensors = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]
    named = call.kwargs.get("hidden_states")
    stream = named if isinstance(named, Tensor) else next(iter(tensors), None)
    if stream is None or not stream.is_floating_point():
        raise FamilyError("a block is not given one tensor of hidden states first")
    return stream.detach()


def _first(output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise FamilyError(f"a block gives a {type(first).__name__}; a tensor of hidden states is expected")
    return first


class _Uses(TorchFunctionMode):
    """Notes which parameters each operation of torch is given."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in parameters.items()}
        self.last: dict[str, int] = {}
        self._clock = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._clock += 1
        self._note((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            name = self._names.get(id(value))
            if name is not None:
                self.last[name] = self._clock
        elif isinstance(value, tuple | list):
            for item in value:
                self._note(item)
        elif isinstance(value, dict):
            for item in value.values():
                self._note(item)


def _order_of_use(block: nn.Module, call: Call, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """The parameters in the order of their last use; those that are not used come first."""
    uses = _Uses(parameters)
    with torch.no_grad(), uses:
        block(*call.args, **call.kwargs)
    return sorted(parameters, key=lambda name: uses.last.get(name, -1))
