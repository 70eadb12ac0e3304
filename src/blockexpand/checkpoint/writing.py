"""A checkpoint's weights written as headers, moved byte ranges and holes.

In: an opened base, the new names of its tensors, and the tensors to add, each a copy of one of the base's or
zeros. Out: `model.safetensors`, or shards and their index, in an existing folder. No tensor is decoded, and
memory does not grow with the model.

The order of the bytes is ours to choose (the format asks only that they be contiguous), and it decides the
speed: each of the base's files is moved in one piece, the added copies follow in ranges as long as the
donor's neighbours allow, then the few constants, and the zeros come last, as a hole that is never written.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint.header import TensorEntry, build_header, num_bytes, num_elements, open_to_read
from blockexpand.checkpoint.moving import Range, merge, move, write_whole
from blockexpand.checkpoint.reading import INDEX, SINGLE, Checkpoint
from blockexpand.errors import StagingError
from blockexpand.progress import bar
from blockexpand.records import write_json


@dataclass(frozen=True, kw_only=True)
class OutputTensor:
    """One tensor to write."""

    name: str
    """Its name in the new checkpoint."""
    dtype: str
    """As safetensors spells it."""
    shape: tuple[int, ...]
    """The sizes of its dimensions."""
    source: TensorEntry | None
    """The tensor of the base whose bytes it takes, or None for zeros or a constant."""
    element: bytes = b""
    """The bytes of every element of a constant that is not zero; written out, so for small tensors."""
    spread: float | None = None
    """For a tensor drawn anew: the standard deviation of its normal distribution, by a seed that its name gives."""

    @property
    def num_bytes(self) -> int:
        """How many bytes the tensor takes."""
        return num_bytes(self.dtype, self.shape)


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """One weights file to write."""

    name: str
    """The file's name."""
    tensors: tuple[OutputTensor, ...]
    """Its tensors, in the order of their bytes."""


def renamed(name: str, entry: TensorEntry) -> OutputTensor:
    """A tensor of the base under a new name."""
    return OutputTensor(name=name, dtype=entry.dtype, shape=entry.shape, source=entry)


def zeros(name: str, entry: TensorEntry) -> OutputTensor:
    """A tensor like one of the base's, all zeros."""
    return OutputTensor(name=name, dtype=entry.dtype, shape=entry.shape, source=None)


_DRAWN_AT_ONCE = 1 << 20
"""Numbers drawn in one piece: memory stays constant."""
_MINUS_ONE = {
    "BF16": b"\x80\xbf",
    "F16": b"\x00\xbc",
    "F32": b"\x00\x00\x80\xbf",
    "F64": b"\x00\x00\x00\x00\x00\x00\xf0\xbf",
}
"""-1.0 in each float dtype, little endian (IEEE 754; bfloat16 is the upper half of float32)."""


def minus_ones(name: str, entry: TensorEntry) -> OutputTensor:
    """A tensor like one of the base's, all -1."""
    return OutputTensor(name=name, dtype=entry.dtype, shape=entry.shape, source=None, element=_MINUS_ONE[entry.dtype])


def digest_of_minus_ones(entry: TensorEntry) -> str:
    """The digest that such a tensor's bytes have."""
    return f"sha256:{hashlib.sha256(_MINUS_ONE[entry.dtype] * entry.num_elements).hexdigest()}"


def drawn(name: str, entry: TensorEntry, spread: float) -> OutputTensor:
    """A tensor like one of the base's, drawn anew from a normal distribution."""
    return OutputTensor(name=name, dtype=entry.dtype, shape=entry.shape, source=None, spread=spread)


def _draw(tensor: OutputTensor) -> Iterator[bytes]:
    """The tensor's bytes, a piece at a time; the same each time for the same name."""
    import numpy as np  # 80 ms: only for an ablation

    assert tensor.spread is not None
    seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little")
    generator, left = np.random.default_rng(seed), num_elements(tensor.shape)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    while left:
        count = min(left, _DRAWN_AT_ONCE)
        values = generator.standard_normal(count, dtype=np.float32) * np.float32(tensor.spread)
        if tensor.dtype == "BF16":
            yield ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2").tobytes()
        else:
            yield values.astype(kinds[tensor.dtype]).tobytes()
        left -= count


def lay_out(base: Checkpoint, kept: dict[str, str], added: Sequence[OutputTensor]) -> tuple[OutputFile, ...]:
    """Which tensor goes into which file, in which order.

    `kept` gives the new name of every tensor of the base. A base in one file stays in one file. A base in
    shards keeps each of them whole; the added tensors go into further shards no larger than its largest.
    """
    assert set(kept) == set(base.tensors), "every tensor of the base is kept, under some name"
    shards = [[renamed(kept[n], e) for n, e in base.tensors.items() if e.file == shard] for shard in base.shards]
    if not base.sharded:
        return (OutputFile(name=SINGLE, tensors=(*shards[0], *_holes_last(added))),)
    limit = max(sum(t.num_bytes for t in shard) for shard in shards)
    groups = [*shards, *(_holes_last(group) for group in _pack(added, limit))]
    return tuple(
        OutputFile(name=f"model-{i:05d}-of-{len(groups):05d}.safetensors", tensors=tuple(group))
        for i, group in enumerate(groups, start=1)
    )


def _holes_last(tensors: Iterable[OutputTensor]) -> list[OutputTensor]:
    return sorted(tensors, key=lambda tensor: tensor.source is None and not _is_made(tensor))


def _pack(tensors: Iterable[OutputTensor], limit: int) -> list[list[OutputTensor]]:
    groups: list[list[OutputTensor]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.num_bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.num_bytes
    return groups


def write_weights(base: Checkpoint, files: Sequence[OutputFile], folder: Path) -> None:
    """Write the files, and the index when the base had one, into `folder`.

    Raises:
        StagingError: there is less space than the copied bytes need.
        CheckpointError: a file of the base ended early.
    """
    num_copied = sum(t.num_bytes for file in files for t in file.tensors if t.source is not None)
    free = shutil.disk_usage(folder).free
    if num_copied > free:
        raise StagingError(
            f"no space left for {folder.parent}: the weights take {num_copied:,} bytes and {free:,} are free; free "
            "some space or choose another output folder. Nothing was left behind"
        )
    metadata = {**base.metadata, "format": base.metadata.get("format", "pt")}
    with bar("copying weights", num_copied, "B") as progress, contextlib.ExitStack() as sources:
        handles = {s: sources.enter_context(open_to_read(base.folder / s)).fileno() for s in base.shards}
        for file in files:
            header, ranges, size = _plan_file(file, metadata)
            with open(folder / file.name, "xb", buffering=0) as stream:
                # The whole length first: what is not written after this is a hole, and reads as zeros.
                stream.truncate(size)
                write_whole(stream, header)
                for piece in ranges:
                    move(handles[piece.file], stream.fileno(), piece, progress.advance)
                for offset, tensor in _made(file, len(header)):
                    stream.seek(offset)
                    for part in _draw(tensor) if tensor.spread else [tensor.element * num_elements(tensor.shape)]:
                        write_whole(stream, part)
    if base.sharded:
        _write_index(files, folder)


def _plan_file(file: OutputFile, metadata: dict[str, str]) -> tuple[bytes, list[Range], int]:
    """The header, the ranges to move, and the length of the whole file."""
    header = build_header(((t.name, t.dtype, t.shape) for t in file.tensors), metadata)
    position, ranges = len(header), []
    for tensor in file.tensors:
        if tensor.source is not None:
            assert tensor.source.num_bytes == tensor.num_bytes, f"{tensor.name} does not have its source's size"
            ranges.append(
                Range(
                    file=tensor.source.file,
                    source=tensor.source.start,
                    target=position,
                    num_bytes=tensor.num_bytes,
                )
            )
        position += tensor.num_bytes
    return header, merge(ranges), position


def _is_made(tensor: OutputTensor) -> bool:
    return bool(tensor.element) or tensor.spread is not None


def _made(file: OutputFile, position: int) -> list[tuple[int, OutputTensor]]:
    """Where the tensors go that are neither copied nor zero; `position` is where the tensors begin."""
    found = []
    for tensor in file.tensors:
        if _is_made(tensor):
            found.append((position, tensor))
        position += tensor.num_bytes
    return found


def _write_index(files: Sequence[OutputFile], folder: Path) -> None:
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    metadata = {
        "total_parameters": sum(num_elements(t.shape) for file in files for t in file.tensors),
        "total_size": sum(tensor.num_bytes for file in files for tensor in file.tensors),
    }
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
