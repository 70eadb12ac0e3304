"""Plain values as bytes, and frames on a pipe, for two sides that do not trust each other.

In and out: None, booleans, numbers, text, bytes, lists, tuples, sets and dictionaries of them, of exactly these types.
What else there is goes through a hook as a tag with a plain value. Loading builds nothing but such values: pickle and
marshal would run or build what hostile bytes say, and `json` costs 8 ms of a start (measured here) and knows no tuples.
Refuses (ValueError) other types without a hook, bytes that are not of this format, and frames over a limit.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from collections.abc import Callable
    from typing import Any

    Encode = Callable[[Any], tuple[str, Any]]
    Decode = Callable[[str, Any], Any]

MOST_BYTES = 64 * 1024 * 1024
"""The longest frame that is read: the other side may lie about lengths."""


class Gone(EOFError):  # noqa: N818 (not a mistake of anybody's)
    """The other side has closed its end."""


_ITEMS = {list: b"l", tuple: b"t", set: b"s", frozenset: b"z"}
_MAKERS = {kind: maker for maker, kind in _ITEMS.items()}


def _refuse(value: Any) -> tuple[str, Any]:
    raise ValueError(f"a {type(value).__name__} cannot be sent")


def _refuse_tag(tag: str, _payload: Any) -> Any:
    raise ValueError(f"unexpected tag {tag!r}")


def dump(value: Any, encode: Encode = _refuse) -> bytes:
    """`value` as bytes; `encode` turns what is not plain into a tag and a plain value."""
    parts: list[bytes] = []
    _dump(value, encode, parts)
    return b"".join(parts)


def _text(kind: bytes, body: bytes, parts: list[bytes]) -> None:
    parts += (kind, b"%d:" % len(body), body)


def _dump(value: Any, encode: Encode, parts: list[bytes]) -> None:
    kind = type(value)
    if value is None or value is True or value is False:
        parts.append({None: b"N", True: b"T", False: b"F"}[value])
    elif kind is int:
        _text(b"i", b"%x" % value, parts)  # hexadecimal: decimal conversion is capped at 4,300 digits
    elif kind is float:
        _text(b"f", value.hex().encode(), parts)
    elif kind is complex:
        _text(b"c", f"{value.real.hex()} {value.imag.hex()}".encode(), parts)
    elif kind is str:
        _text(b"u", value.encode("utf-8", "surrogatepass"), parts)
    elif kind is bytes:
        _text(b"b", value, parts)
    elif kind in _ITEMS:
        parts += (_ITEMS[kind], b"%d:" % len(value))
        for item in value:
            _dump(item, encode, parts)
    elif kind is dict:
        parts += (b"d", b"%d:" % len(value))
        for key, item in value.items():
            _dump(key, encode, parts)
            _dump(item, encode, parts)
    else:
        tag, payload = encode(value)
        _text(b"x", tag.encode(), parts)
        _dump(payload, encode, parts)


def load(data: bytes, decode: Decode = _refuse_tag) -> Any:
    """The value in `data`, whole or ValueError; `decode` is given each tag and its plain value."""
    try:
        value, end = _load(data, 0, decode)
    except (IndexError, TypeError, OverflowError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"not a value: {error}") from None
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes after the value")
    return value


def _load(data: bytes, at: int, decode: Decode) -> tuple[Any, int]:
    kind = data[at : at + 1]
    if kind in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[kind], at + 1
    colon = data.index(b":", at, at + 20)
    size, start = int(data[at + 1 : colon]), colon + 1
    if not 0 <= size <= len(data) - start:
        raise ValueError(f"length {size} at byte {at} of {len(data)}")
    if kind in _MAKERS:
        items = []
        for _ in range(size):
            item, start = _load(data, start, decode)
            items.append(item)
        return _MAKERS[kind](items), start
    if kind == b"d":
        pairs = {}
        for _ in range(size):
            key, start = _load(data, start, decode)
            pairs[key], start = _load(data, start, decode)
        return pairs, start
    body, end = data[start : start + size], start + size
    if kind == b"x":
        payload, end = _load(data, end, decode)
        return decode(body.decode(), payload), end
    return _scalar(kind, body), end


def _scalar(kind: bytes, body: bytes) -> Any:
    if kind == b"i":
        return int(body, 16)
    if kind == b"f":
        return float.fromhex(body.decode())
    if kind == b"c":
        real, imaginary = body.decode().split(" ")
        return complex(float.fromhex(real), float.fromhex(imaginary))
    if kind == b"u":
        return body.decode("utf-8", "surrogatepass")
    if kind == b"b":
        return body
    raise ValueError(f"unknown kind {kind!r}")


def send(descriptor: int, data: bytes) -> None:
    """One frame: eight bytes of length, then `data`."""
    view = memoryview(len(data).to_bytes(8, "big") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int) -> bytes:
    """The next frame. Gone when the other side has gone, ValueError when it claims more than the limit."""
    size = int.from_bytes(_exactly(descriptor, 8), "big")
    if size > MOST_BYTES:
        raise ValueError(f"a frame of {size} bytes, at most {MOST_BYTES} are read")
    return _exactly(descriptor, size)


def _exactly(descriptor: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise Gone("the other side has gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
