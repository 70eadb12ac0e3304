"""Frames on a pipe: eight bytes of length, then so many bytes. From behind the wall only bytes and text are read.

The launcher's orders and the warden's report are `marshal` (`json` costs 8 ms of a start, measured here), which is safe
to read only from a side that is trusted: both are.
"""

from __future__ import annotations

import os

MOST_BYTES = 64 * 1024 * 1024
"""The longest frame that is read: the other side may lie about lengths."""


class Gone(EOFError):  # noqa: N818 (not a mistake of anybody's)
    """The other side has closed its end."""


def framed(data: bytes) -> bytes:
    """The data as a frame."""
    return len(data).to_bytes(8, "big") + data


def send(descriptor: int, data: bytes) -> None:
    """Write one frame."""
    view = memoryview(framed(data))
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
