"""A device that is not there: `sim`. Its tensors compute on the CPU, refuse to meet CPU tensors, and every place where
the host would wait for a real accelerator is noted.

    import simulated_device            # registers it, for good: in a process of its own; torch.accelerator finds it
    with simulated_device.waits() as noted:
        model.to("sim")(tokens.to("sim"))
    noted                               # one entry a wait: the operation, and the line of ours that asked for it

What it cannot show: kernels, memory, streams, numbers of a chip. Copies to and from the host are allowed, as on a chip;
a copy to the host is a wait, a copy from it is not.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator
from typing import Any

import torch
from torch.utils import backend_registration

NAME = "sim"
_READ_BACK = {
    "aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select",
    "aten._unique2", "aten.unique_consecutive", "aten.unique_dim", "aten.repeat_interleave",
}  # fmt: skip
"""Operations whose result, or its size, the host needs before it can go on."""
_noted: list[list[str]] = []
_lock = threading.Lock()


@contextlib.contextmanager
def waits() -> Generator[list[str]]:
    """The waits of all threads inside this context."""
    mine: list[str] = []
    with _lock:
        _noted.append(mine)
    try:
        yield mine
    finally:
        with _lock:
            _noted.remove(mine)


def _note(operation: str) -> None:
    if not _noted:
        return
    frame, where = sys._getframe(), "elsewhere"
    while frame is not None:
        if "/blockexpand/" in frame.f_code.co_filename:
            where = f"{frame.f_code.co_filename.rpartition('/blockexpand/')[2]}:{frame.f_lineno}"
            break
        frame = frame.f_back  # type: ignore[assignment]
    with _lock:
        for one in _noted:
            one.append(f"{operation} {where}")


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())


class Simulated(torch.Tensor):
    """A tensor of the device; its numbers are in `inner`, on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Simulated:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"{NAME}({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        operation = str(func).rpartition(".")[0]
        leaves: list[torch.Tensor] = []
        inner, inner_kwargs = _inner(args, leaves), _inner(kwargs, leaves)
        here = any(isinstance(leaf, Simulated) for leaf in leaves)
        copies = "copy" in operation
        if here and not copies and any(not isinstance(leaf, Simulated) and leaf.dim() > 0 for leaf in leaves):
            raise RuntimeError(f"{func}: expected all tensors on one device, found {NAME} and cpu")
        target = kwargs.get("device")
        to_host = target is not None and torch.device(target).type == "cpu"
        if operation == "aten.copy_":
            to_host = isinstance(args[1], Simulated) and not isinstance(args[0], Simulated)
        by_mask = operation in ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_") and any(
            leaf.dtype == torch.bool for leaf in leaves
        )
        if to_host or by_mask or operation in _READ_BACK:
            _note(operation)
        if target is not None:
            inner_kwargs["device"] = torch.device("cpu")
        if operation == "aten.histc" and not inner[0].is_floating_point():
            result = func(inner[0].float(), *inner[1:], **inner_kwargs).to(inner[0].dtype)  # chips count whole numbers
        else:
            result = func(*inner, **inner_kwargs)
        if operation.endswith("_") and not operation.endswith("__"):  # in place
            return args[0]
        return result if to_host else _wrapped(result)


def _inner(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value with the numbers in the place of our tensors; every tensor in it goes to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, Simulated) else value
    if isinstance(value, dict):
        return {key: _inner(item, tensors) for key, item in value.items()}
    return type(value)(_inner(item, tensors) for item in value) if type(value) in (list, tuple) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Simulated(value)
    return type(value)(map(_wrapped, value)) if type(value) in (list, tuple) else value


def _empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    return Simulated(torch.empty(size, dtype=dtype or torch.get_default_dtype()))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, **_: Any) -> torch.Tensor:
    return Simulated(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()))


def _to_copy(tensor: torch.Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    copied = (tensor.inner if isinstance(tensor, Simulated) else tensor).to(dtype=dtype or tensor.dtype, copy=True)
    on_host = device is not None and torch.device(device).type == "cpu"
    return copied if on_host else Simulated(copied)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    values = source.inner if isinstance(source, Simulated) else source
    (target.inner if isinstance(target, Simulated) else target).copy_(values)
    return target


_IMPLEMENTED = torch.library.Library("aten", "IMPL", "PrivateUse1")
for _name, _function in {
    "empty.memory_format": _empty, "empty_strided": _empty_strided, "_to_copy": _to_copy, "_copy_from": _copy_from,
}.items():  # fmt: skip
    _IMPLEMENTED.impl(_name, _function)
