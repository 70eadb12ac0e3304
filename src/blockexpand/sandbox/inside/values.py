"""How values of a program's side reach its tests' side and back: plain by value, known by name, the rest by reference.

In: any object. Out: a tag and a plain value for `codec`, and the object again on the other side. Subclasses of plain
types arrive as the plain type, so that they cannot decide what they are equal to. Names are looked up only in a short
list of modules that hold functions without consequences. Refuses (ValueError) tags and names that are not of this list.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from typing import Any

KNOWN_MODULES = (
    "bisect", "cmath", "collections", "datetime", "decimal", "fractions", "heapq", "itertools", "json", "math",
    "random", "re", "statistics", "string",
)  # fmt: skip
"""What programs import and tests then use by the same name. Nothing here reaches into an object (`operator` does)."""

_PLAIN = (int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
_FACTORIES = {"int": int, "float": float, "str": str, "list": list, "dict": dict, "set": set}
_NUMBERS = "?biufc"
"""numpy's kinds of numbers (numpy.dtype.kind), without objects."""


def encode(value: Any) -> tuple[str, Any] | None:
    """The tag and plain value that `value` travels as, None for what only travels by reference."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _ENCODERS:
        return name, _ENCODERS[name](value)
    if isinstance(value, type) and value.__module__ == "builtins" and vars(_builtins()).get(value.__name__) is value:
        return "type", value.__name__
    if kind is type(sys) and value.__name__ in KNOWN_MODULES:
        return "module", value.__name__
    known = _by_name(value)
    if known is not None:
        return "known", known
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in _NUMBERS:
        return "plain", value.item()
    if numpy is not None and kind is numpy.ndarray and value.dtype.kind in _NUMBERS:
        return "array", (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, tuple) and isinstance(vars(kind).get("_fields"), tuple):
        return "named", (kind.__name__, kind._fields, tuple(value))
    for plain in _PLAIN:
        if isinstance(value, plain):
            return "plain", plain(value)
    return None


def decode(tag: str, payload: Any) -> Any:
    """What `encode` was given, made anew. ValueError for anything else."""
    if tag == "plain":
        return payload
    if tag == "type":
        found = vars(_builtins()).get(payload)
        if isinstance(found, type):
            return found
    elif tag == "module" and payload in KNOWN_MODULES:
        return __import__(payload)
    elif tag == "known" and payload[0] in KNOWN_MODULES:
        return vars(__import__(payload[0]))[payload[1]]
    elif tag == "named":
        from collections import namedtuple

        return namedtuple(payload[0], payload[1])(*payload[2])
    elif tag == "array":
        import numpy

        kind = numpy.dtype(payload[0])
        if kind.kind in _NUMBERS:
            return numpy.frombuffer(payload[2], dtype=kind).reshape(payload[1]).copy()
    elif tag in _DECODERS:
        return _DECODERS[tag](payload)
    raise ValueError(f"nothing travels as {tag!r} {payload!r:.80}")


def _builtins() -> Any:
    return sys.modules["builtins"]


def _by_name(value: Any) -> tuple[str, str] | None:
    """(module, name) of a function or class of a known module, where it is found again by exactly that."""
    if not isinstance(value, type | type(len) | type(_by_name)):
        return None
    module, name = value.__module__, value.__name__
    module = {"_collections": "collections", "_heapq": "heapq", "_bisect": "bisect"}.get(module, module)
    if module in KNOWN_MODULES and vars(sys.modules[module]).get(name) is value:
        return module, name
    return None


def _module(name: str) -> Any:
    return __import__(name)


_ENCODERS: dict[str, Any] = {
    "builtins.range": lambda v: (v.start, v.stop, v.step),
    "builtins.slice": lambda v: (v.start, v.stop, v.step),
    "builtins.bytearray": bytes,
    "builtins.ellipsis": lambda _: None,
    "builtins.NotImplementedType": lambda _: None,
    "collections.deque": lambda v: (list(v), v.maxlen),
    "collections.Counter": dict,
    "collections.OrderedDict": lambda v: list(v.items()),
    "collections.defaultdict": lambda v: (v.default_factory and v.default_factory.__name__, dict(v)),
    "fractions.Fraction": lambda v: (v.numerator, v.denominator),
    "decimal.Decimal": str,
    "datetime.date": lambda v: v.isoformat(),
    "datetime.time": lambda v: v.isoformat(),
    "datetime.datetime": lambda v: v.isoformat(),
    "datetime.timedelta": lambda v: (v.days, v.seconds, v.microseconds),
}
_DECODERS: dict[str, Any] = {
    "builtins.range": lambda p: range(*p),
    "builtins.slice": lambda p: slice(*p),
    "builtins.bytearray": bytearray,
    "builtins.ellipsis": lambda _: ...,
    "builtins.NotImplementedType": lambda _: NotImplemented,
    "collections.deque": lambda p: _module("collections").deque(*p),
    "collections.Counter": lambda p: _module("collections").Counter(p),
    "collections.OrderedDict": lambda p: _module("collections").OrderedDict(p),
    "collections.defaultdict": lambda p: _module("collections").defaultdict(_FACTORIES.get(p[0]), p[1]),
    "fractions.Fraction": lambda p: _module("fractions").Fraction(*p),
    "decimal.Decimal": lambda p: _module("decimal").Decimal(p),
    "datetime.date": lambda p: _module("datetime").date.fromisoformat(p),
    "datetime.time": lambda p: _module("datetime").time.fromisoformat(p),
    "datetime.datetime": lambda p: _module("datetime").datetime.fromisoformat(p),
    "datetime.timedelta": lambda p: _module("datetime").timedelta(*p),
}
