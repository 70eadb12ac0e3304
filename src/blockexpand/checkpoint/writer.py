"""A checkpoint's weights written as headers, moved byte ranges and holes.

In: an opened base, the new names of its tensors, and the tensors to add, each a copy of one of the base's or
zeros. Out: `model.safetensors`, or shards and their index, in an existing folder. No tensor is decoded, and
memory does not grow with the model.

Where a file's data begins and the order of its tensors are ours to choose (the format asks only that there be no
gaps), and they decide the speed: the bytes of each of the base's files keep their order and their offsets modulo
64 KiB, the added copies are put in an order in which most do, too, then come the few constants, and the zeros last,
as a hole that is never written.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint.folder import INDEX, SINGLE, Checkpoint
from blockexpand.checkpoint.header import ALIGNMENT_BYTES, TensorEntry, build_header, num_bytes, num_elements
from blockexpand.checkpoint.passes import Place, TensorDigest, copy_tensors, new_hasher
from blockexpand.checkpoint.streams import write_whole
from blockexpand.errors import StagingError
from blockexpand.records import write_json
from blockexpand.records.plan import Starts


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
    drawn: bool = False
    """Whether it is drawn anew, from a normal distribution by a seed that its name gives."""

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


_BEGINNINGS = 16
"""How many places modulo ALIGNMENT_BYTES are tried for the beginning of a further shard's data."""
_SPREAD = 0.02
"""Standard deviation of what is drawn: what transformers' config classes default to (initializer_range)."""
_DRAWN_AT_ONCE = 1 << 20
"""Numbers drawn in one piece: memory stays constant."""
_MINUS_ONE = {
    "BF16": b"\x80\xbf",
    "F16": b"\x00\xbc",
    "F32": b"\x00\x00\x80\xbf",
    "F64": b"\x00\x00\x00\x00\x00\x00\xf0\xbf",
}
"""-1.0 in each float dtype, little endian (IEEE 754; bfloat16 is the upper half of float32)."""


def output_tensor(name: str, entry: TensorEntry, starts: Starts = "donor") -> OutputTensor:
    """A tensor like one of the base's: with its bytes, all zeros, all -1, or drawn anew from a normal distribution."""
    return OutputTensor(
        name=name,
        dtype=entry.dtype,
        shape=entry.shape,
        source=entry if starts == "donor" else None,
        element=_MINUS_ONE[entry.dtype] if starts == "minus-one" else b"",
        drawn=starts == "random",
    )


def digest_of_minus_ones(entry: TensorEntry) -> str:
    """The digest that such a tensor's bytes have."""
    algorithm, hasher = new_hasher()
    hasher.update(_MINUS_ONE[entry.dtype] * entry.num_elements)
    return f"{algorithm}:{hasher.hexdigest()}"


def _draw(tensor: OutputTensor) -> Iterator[bytes]:
    """The tensor's bytes, a piece at a time; the same each time for the same name."""
    import numpy as np  # 80 ms: only for an ablation

    seed = int.from_bytes(hashlib.sha256(tensor.name.encode()).digest()[:8], "little")
    generator, left = np.random.default_rng(seed), num_elements(tensor.shape)
    kinds = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    while left:
        count = min(left, _DRAWN_AT_ONCE)
        values = generator.standard_normal(count, dtype=np.float32) * np.float32(_SPREAD)
        if tensor.dtype == "BF16":
            yield ((values.view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2").tobytes()
        else:
            yield values.astype(kinds[tensor.dtype]).tobytes()
        left -= count


def lay_out(base: Checkpoint, kept: dict[str, str], added: Sequence[OutputTensor]) -> tuple[OutputFile, ...]:
    """Which tensor goes into which file, in which order.

    `kept` gives the new name of every tensor of the base. A base in one file stays in one file. A base in
    shards keeps each of them whole; the added tensors go into further shards no larger than its largest, each with
    copies from one file.
    """
    assert set(kept) == set(base.tensors), "every tensor of the base is kept, under some name"
    shards = [[output_tensor(kept[n], e) for n, e in base.tensors.items() if e.file == shard] for shard in base.shards]
    if not base.sharded:
        end = max(entry.end for entry in base.tensors.values())
        return (OutputFile(name=SINGLE, tensors=(*shards[0], *_arrange(added, end))),)
    limit = max(sum(t.num_bytes for t in shard) for shard in shards)
    groups = [*shards, *(_arrange(group, None) for group in _pack(added, limit))]
    return tuple(
        OutputFile(name=f"model-{i:05d}-of-{len(groups):05d}.safetensors", tensors=tuple(group))
        for i, group in enumerate(groups, start=1)
    )


def _arrange(tensors: Iterable[OutputTensor], position: int | None) -> list[OutputTensor]:
    """Copies in an order in which most keep their offset modulo ALIGNMENT_BYTES, then what is made, then zeros.

    `position` is the offset at which they begin, or None when that can be chosen.
    """
    given = list(tensors)
    copies = [t for t in given if t.source is not None]
    begins = [position] if position is not None else list(_residues(copies))[:_BEGINNINGS]
    orders = [_order(copies, begin) for begin in begins]
    made = [t for t in given if t.source is None and _is_made(t)]
    empty = [t for t in given if t.source is None and not _is_made(t)]
    return [*(max(orders, key=lambda order: order[1])[0] if orders else []), *made, *empty]


def _residues(copies: Iterable[OutputTensor]) -> dict[int, deque[int]]:
    """The numbers of the copies that have the same offset modulo ALIGNMENT_BYTES in their source, large ones first."""
    found: dict[int, deque[int]] = {}
    for number, tensor in sorted(enumerate(copies), key=lambda pair: (-pair[1].num_bytes, pair[0])):
        found.setdefault(_residue(tensor), deque()).append(number)
    return found


def _order(copies: Sequence[OutputTensor], begin: int) -> tuple[list[OutputTensor], int]:
    """The copies in an order for data that begins at `begin`, and how many bytes of them keep their offset.

    Where no copy fits, the smallest that is left goes first: as a shim, or because there is no help.
    """
    fitting = _residues(copies)
    shims = iter(sorted(range(len(copies)), key=lambda number: (copies[number].num_bytes, number)))
    placed: set[int] = set()
    order: list[OutputTensor] = []
    offset, num_fit = begin, 0
    while len(order) < len(copies):
        waiting = fitting.get(offset % ALIGNMENT_BYTES, deque())
        while waiting and waiting[0] in placed:
            waiting.popleft()
        number = waiting.popleft() if waiting else next(n for n in shims if n not in placed)
        tensor = copies[number]
        num_fit += tensor.num_bytes if _residue(tensor) == offset % ALIGNMENT_BYTES else 0
        placed.add(number)
        order.append(tensor)
        offset += tensor.num_bytes
    return order, num_fit


def _residue(tensor: OutputTensor) -> int:
    assert tensor.source is not None, f"{tensor.name} is not a copy"
    return tensor.source.start % ALIGNMENT_BYTES


def _pack(tensors: Iterable[OutputTensor], limit: int) -> list[list[OutputTensor]]:
    """In groups no larger than `limit`, each with copies from one file only: other files have other offsets."""
    groups: list[list[OutputTensor]] = []
    size, origin = 0, None
    for tensor in tensors:
        source = tensor.source.file if tensor.source is not None else origin
        if not groups or size + tensor.num_bytes > limit or source != (origin or source):
            groups.append([])
            size, origin = 0, None
        groups[-1].append(tensor)
        size, origin = size + tensor.num_bytes, source if tensor.source is not None else origin
    return groups


def write_weights(
    base: Checkpoint,
    files: Sequence[OutputFile],
    folder: Path,
    *,
    digest: bool = False,
    holes: Collection[str] = (),
) -> dict[str, TensorDigest]:
    """Write the files, and the index when the base had one, into `folder`; the digests of the base, when asked for.

    The tensors named in `holes` have their places, as holes that the caller fills.

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
    places: dict[TensorEntry, list[Place]] = {}
    for file in files:
        _begin(file, folder / file.name, metadata, places, holes)
    digests = copy_tensors(base, places, folder, digest=digest)
    if base.sharded:
        _write_index(files, folder)
    return digests


def _begin(
    file: OutputFile,
    path: Path,
    metadata: dict[str, str],
    places: dict[TensorEntry, list[Place]],
    holes: Collection[str],
) -> None:
    """Write the header and what is neither copied nor zero, and add to `places` where the copies go."""
    header = build_header(((t.name, t.dtype, t.shape) for t in file.tensors), metadata, _data_residue(file))
    with open(path, "xb", buffering=0) as stream:
        # The whole length first: what is not written after this is a hole, and reads as zeros.
        stream.truncate(len(header) + sum(t.num_bytes for t in file.tensors))
        write_whole(stream, header)
        position = len(header)
        for tensor in file.tensors:
            if tensor.name in holes:
                pass
            elif tensor.source is not None:
                assert tensor.source.num_bytes == tensor.num_bytes, f"{tensor.name} does not have its source's size"
                places.setdefault(tensor.source, []).append(Place(file=file.name, start=position))
            elif _is_made(tensor):
                stream.seek(position)
                for part in _draw(tensor) if tensor.drawn else [tensor.element * num_elements(tensor.shape)]:
                    write_whole(stream, part)
            position += tensor.num_bytes


def _data_residue(file: OutputFile) -> int:
    """Where the data begins, modulo ALIGNMENT_BYTES: so that most copied bytes keep their offset modulo that."""
    position = 0
    num_bytes: dict[int, int] = {}
    for tensor in file.tensors:
        if tensor.source is not None:
            residue = (tensor.source.start - position) % ALIGNMENT_BYTES
            num_bytes[residue] = num_bytes.get(residue, 0) + tensor.num_bytes
        position += tensor.num_bytes
    return max(num_bytes, key=lambda residue: num_bytes[residue]) if num_bytes else 0


def _is_made(tensor: OutputTensor) -> bool:
    return bool(tensor.element) or tensor.drawn


def _write_index(files: Sequence[OutputFile], folder: Path) -> None:
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    metadata = {
        "total_parameters": sum(num_elements(t.shape) for file in files for t in file.tensors),
        "total_size": sum(tensor.num_bytes for file in files for tensor in file.tensors),
    }
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))})
