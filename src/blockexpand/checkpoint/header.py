"""The header of one safetensors file: read with suspicion, written aligned.

A file is eight bytes (the header's length, little endian), the header (JSON, padded with spaces), and the
tensors' bytes without a gap. Specification: README of huggingface/safetensors, "Format".

In: a file. Out: where each tensor's bytes lie. Refused, before anything is allocated for it: a length that
exceeds the file or 100 MB; then anything but strict JSON with exactly the keys of the format, unknown dtypes,
sizes that do not follow from shape and dtype, and byte ranges that overlap, leave gaps or leave the file.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from blockexpand.errors import CheckpointError, RecordError, nearest
from blockexpand.records import parse_json
from blockexpand.units import DTYPES

MAX_HEADER_BYTES = 100_000_000
"""As in safetensors/src/tensor.rs (MAX_HEADER_SIZE)."""
ALIGNMENT_BYTES = 64 << 10
"""Bytes that keep their offset modulo this move by whole pages (4 to 64 KiB) and in large folios, which takes half the
time (docs/log.md, 2026-11-25), and can be shared where the file system knows reflinks."""
LENGTH_BYTES = 8
"""Before the header: how long it is, little endian."""
_METADATA = "__metadata__"


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor's place on disk."""

    file: str
    """The name of the shard inside the checkpoint's folder."""
    dtype: str
    """As the header spells it, e.g. `BF16`."""
    shape: tuple[int, ...]
    """The sizes of its dimensions; empty for a scalar."""
    start: int
    """The file offset of its first byte."""
    end: int
    """The file offset after its last byte."""

    @property
    def num_bytes(self) -> int:
        """How many bytes the tensor takes."""
        return self.end - self.start

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return num_elements(self.shape)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of one file says."""

    tensors: dict[str, TensorEntry]
    """Every tensor, in the order of its bytes."""
    metadata: dict[str, str]
    """The file's `__metadata__`."""
    data_start: int
    """The file offset at which tensor bytes begin."""


def num_elements(shape: Iterable[int]) -> int:
    """The product of the sizes."""
    total = 1
    for size in shape:
        total *= size
    return total


def num_bytes(dtype: str, shape: Iterable[int]) -> int:
    """The bytes a tensor of whole bytes takes."""
    bits = num_elements(shape) * DTYPES[dtype].bits
    assert bits % 8 == 0, f"{dtype} of shape {tuple(shape)} does not fill whole bytes"
    return bits // 8


def open_to_read(path: Path) -> BinaryIO:
    """The file, open.

    Raises:
        CheckpointError: it cannot be opened, or is no plain file.
    """
    try:
        # A pipe that nobody writes to would be waited for without end.
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return stream
        stream.close()
        raise OSError(errno.EINVAL, "it is a pipe or a device")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; expected a readable file; check its permissions and its disk"
        ) from error


def read_header(path: Path) -> Header:
    """The header of the file at `path`.

    Raises:
        CheckpointError: the file is not a whole and honest safetensors file; the message says how.
    """
    with open_to_read(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(LENGTH_BYTES)
        if len(first) < LENGTH_BYTES:
            _refuse(path, f"is {size} bytes long, too short for a safetensors file")
        length = int.from_bytes(first, "little")
        if length > MAX_HEADER_BYTES:
            _refuse(path, f"states a header of {length:,} bytes; expected at most {MAX_HEADER_BYTES:,}")
        if length > size - LENGTH_BYTES:
            _refuse(path, f"states a header of {length:,} bytes but is only {size:,} bytes long")
        raw = stream.read(length)
    assert len(raw) == length, f"{path} shrank while it was read"
    return parse_header(raw, size - LENGTH_BYTES - length, path)


def parse_header(raw: bytes, data_bytes: int, path: Path) -> Header:
    """The header `raw` of a file with `data_bytes` bytes after it."""
    if not raw.startswith(b"{"):
        _refuse(path, f"has a header that begins with {raw[:8]!r}; expected '{{'")
    try:
        data = parse_json(raw.decode("utf-8"), f"the header of {path}")
    except UnicodeDecodeError as error:
        _refuse(path, f"has a header that is not UTF-8: {error.reason} at byte {error.start}")
    except RecordError as error:
        raise CheckpointError(f"{error}; download or write the file again") from None
    if not isinstance(data, dict):
        _refuse(path, f"has a header of type {type(data).__name__}; expected a JSON object")
    metadata = _metadata(data.pop(_METADATA, {}), path)
    data_start = LENGTH_BYTES + len(raw)
    tensors = {name: _entry(name, item, data_start, data_bytes, path) for name, item in data.items()}
    tensors = dict(sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].end)))
    _check_contiguous(tensors, data_start, data_start + data_bytes, path)
    return Header(tensors=tensors, metadata=metadata, data_start=data_start)


def _refuse(path: Path, problem: str) -> NoReturn:
    raise CheckpointError(f"{path} {problem}; the file is damaged or incomplete: download or write it again")


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        _refuse(path, f"has the {_METADATA} {value!r:.80}; expected text by name")
    return value


def _entry(name: str, item: Any, data_start: int, data_bytes: int, path: Path) -> TensorEntry:
    try:
        name.encode()
    except UnicodeEncodeError:
        _refuse(path, f"names a tensor {name!r}, which cannot be written as UTF-8")
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"describes {name!r} as {item!r:.80}; expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(path, f"gives {name!r} the dtype {dtype!r}; {nearest(str(dtype), DTYPES)}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        _refuse(
            path,
            f"gives {name!r} the shape {shape!r:.80} and offsets {offsets!r:.80}; expected whole numbers",
        )
    start, end = offsets
    if not start <= end <= data_bytes:
        _refuse(path, f"puts {name!r} at bytes {start:,} to {end:,} of {data_bytes:,}")
    expected = _bits(shape, DTYPES[dtype].bits, limit=8 * data_bytes)
    if expected != 8 * (end - start):
        _refuse(path, f"gives {name!r} {end - start:,} bytes; {dtype} of shape {shape!r:.80} takes another number")
    return TensorEntry(file=path.name, dtype=dtype, shape=tuple(shape), start=data_start + start, end=data_start + end)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _bits(shape: list[int], width: int, limit: int) -> int:
    """The bits a tensor takes, or some number above `limit`: a shape of a million sizes is not multiplied "
    "out."""
    if 0 in shape:
        return 0
    total = width
    for size in shape:
        total *= size
        if total > limit:
            break
    return total


def _check_contiguous(tensors: dict[str, TensorEntry], begin: int, end: int, path: Path) -> None:
    position, previous = begin, "the header"
    for name, entry in tensors.items():
        if entry.start != position:
            what = "overlaps" if entry.start < position else "leaves a gap after"
            _refuse(
                path,
                f"is not contiguous: {name!r} {what} {previous!r} ({abs(entry.start - position):,} bytes)",
            )
        position, previous = entry.end, name
    if position != end:
        _refuse(path, f"has {end - position:,} bytes after the last tensor that belong to none")


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: dict[str, str],
    residue: int = 0,
    alignment: int = ALIGNMENT_BYTES,
) -> bytes:
    """Length and header of a file whose data holds (name, dtype, shape) in this order.

    It is padded so that the data begins at an offset that is `residue` modulo `alignment`.
    """
    entries: dict[str, Any] = {_METADATA: metadata}
    position = 0
    for name, dtype, shape in tensors:
        assert name not in entries, f"the tensor {name!r} is written twice"
        end = position + num_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    padding = (residue - LENGTH_BYTES - len(text)) % alignment
    length = len(text) + padding
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"the header of one output file would take {length:,} bytes, more than the {MAX_HEADER_BYTES:,} that "
            "readers accept; use a base in smaller shards"
        )
    return length.to_bytes(LENGTH_BYTES, "little") + text + b" " * padding
