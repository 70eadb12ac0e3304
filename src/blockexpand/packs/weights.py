"""A pack's weights file written and read in pieces, in whatever way it is stored.

In: where tensors' bytes are. Out: a weights file, or the decoded bytes of a tensor piece by piece, whose digest is
held against the record's. Refused: bytes that are not those.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from blockexpand.checkpoint import Checkpoint, Place, TensorEntry, build_header, copy_tensors, num_bytes, num_elements
from blockexpand.checkpoint.header import ALIGNMENT_BYTES, open_to_read
from blockexpand.checkpoint.passes import new_hasher
from blockexpand.errors import PackError
from blockexpand.packs.encoding import (
    PIECE_BYTES,
    SCALE,
    compressed,
    is_rounded,
    opened,
    packed_pieces,
    piece_bytes,
    rounded,
    unrounded,
)
from blockexpand.packs.pack import WEIGHTS, Pack
from blockexpand.packs.record import Encoding, tensors_of
from blockexpand.records.plan import BlockTensor
from blockexpand.staging import PACK_NAME

Start = Callable[[], Iterator[bytes]]
"""The bytes that a tensor started from, in pieces as its own."""
Row = tuple[str, str, tuple[int, ...]]
"""Of a header: name, dtype and shape."""

_SMALL_BYTES = 256 << 20
"""A weights file below this is not padded to a page: packs are to be at most a thousandth larger than their blocks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """One tensor to store."""

    name: str
    """Its name in the pack."""
    tensor: BlockTensor
    """What it is."""
    entry: TensorEntry
    """Where its bytes are."""
    donor: TensorEntry | None
    """Where those are that it started from; None when it started as a constant."""


def pieces(folder: Path, entry: TensorEntry, size: int) -> Generator[bytes]:
    """A tensor's bytes, `size` at a time."""
    with open_to_read(folder / entry.file) as stream:
        stream.seek(entry.start)
        for start in range(entry.start, entry.end, size):
            yield stream.read(min(size, entry.end - start))


def write_plain(checkpoint: Checkpoint, sources: Sequence[Source], folder: Path) -> None:
    """The tensors as they are: a header and moved bytes."""
    rows = [(source.name, source.tensor.dtype, source.tensor.shape) for source in sources]
    total = sum(source.entry.num_bytes for source in sources)
    header = build_header(rows, {"format": "pt"}, alignment=_alignment(total))
    with open(folder / WEIGHTS, "xb") as stream:
        stream.write(header)
        stream.truncate(len(header) + total)
    places: dict[TensorEntry, list[Place]] = {}
    at = len(header)
    for source in sources:
        places.setdefault(source.entry, []).append(Place(file=WEIGHTS, start=at))
        at += source.entry.num_bytes
    alone = dataclasses.replace(checkpoint, tensors={source.name: source.entry for source in sources})
    copy_tensors(alone, places, folder, digest=False)


def write_encoded(checkpoint: Checkpoint, sources: Sequence[Source], folder: Path, encoding: Encoding) -> None:
    """The tensors compressed or rounded."""
    with weights_file(folder) as (stream, rows):
        for source in sources:
            rows += _encode(checkpoint, source, encoding, stream)


@contextlib.contextmanager
def weights_file(folder: Path) -> Generator[tuple[BinaryIO, list[Row]]]:
    """A stream for the bytes of a weights file whose sizes are known only when they are written, and a list for the
    rows of its header, which comes last.
    """
    rows: list[Row] = []
    data = folder / ".data"
    with open(data, "xb") as stream:
        yield stream, rows
        total = stream.tell()
    with open(folder / WEIGHTS, "xb") as stream, open(data, "rb") as encoded:
        stream.write(build_header(rows, {"format": "pt"}, alignment=_alignment(total)))
        while part := encoded.read(PIECE_BYTES):
            stream.write(part)
    data.unlink()


def _alignment(total: int) -> int:
    return ALIGNMENT_BYTES if total >= _SMALL_BYTES else 8


def _encode(checkpoint: Checkpoint, source: Source, encoding: Encoding, stream: BinaryIO) -> list[Row]:
    """Write one tensor's parts; their rows of the header."""
    tensor, size = source.tensor, piece_bytes(encoding, source.tensor)
    own = pieces(checkpoint.folder, source.entry, size)
    if encoding == "int8" and is_rounded(tensor):
        scales = []
        for piece in own:
            numbers, scale = rounded(piece, tensor)
            stream.write(numbers)
            scales.append(scale)
        stream.write(b"".join(scales))
        rows = num_elements(tensor.shape[:-1])
        return [(source.name, "I8", tensor.shape), (source.name + SCALE, "F32", (rows,))]
    if encoding == "delta":
        begin = stream.tell()
        starts = pieces(checkpoint.folder, source.donor, size) if source.donor else None
        for piece in own:
            stream.write(compressed(piece, next(starts) if starts else None, tensor.dtype))
        return [(source.name, "U8", (stream.tell() - begin,))]
    for piece in own:
        stream.write(piece)
    return [(source.name, tensor.dtype, tensor.shape)]


def decoded(pack: Pack, name: str, tensor: BlockTensor, start: Start | None) -> Iterator[bytes]:
    """The bytes of one of the pack's tensors, in pieces; the last comes only when they are the right ones.

    Raises:
        PackError: they do not open, or their digest is not the record's.
    """
    algorithm, hasher = new_hasher()
    expected = pack.record.block_digests[name]
    last = b""
    for piece in raw_pieces(pack, name, tensor, start):
        if last:
            yield last
        hasher.update(piece)
        last = piece
    if f"{algorithm}:{hasher.hexdigest()}" != expected:
        raise changed(pack, name)
    if last:
        yield last


def changed(pack: Pack, name: str) -> PackError:
    """The error for a tensor whose bytes are not those that the record names."""
    return PackError(
        f"the pack {pack.folder}: the bytes of {name!r} are not those that {PACK_NAME} names "
        f"({pack.record.block_digests[name][:23]}...); expected them as they were extracted; get the pack again"
    )


def raw_pieces(pack: Pack, name: str, tensor: BlockTensor, start: Start | None = None) -> Iterator[bytes]:
    """The same without looking at the digest."""
    encoding, folder = pack.record.encoding, pack.folder
    size = piece_bytes(encoding, tensor)
    if encoding == "delta":
        yield from _opened(pack, name, tensor, start)
    elif encoding == "int8" and is_rounded(tensor):
        scales = pieces(folder, pack.stored[name + SCALE], size // num_bytes(tensor.dtype, tensor.shape[-1:]) * 4)
        numbers = pieces(folder, pack.stored[name], size // num_bytes(tensor.dtype, (1,)))
        for part, scale in zip(numbers, scales, strict=True):
            yield unrounded(part, scale, tensor)
    else:
        yield from pieces(folder, pack.stored[name], size)


def _opened(pack: Pack, name: str, tensor: BlockTensor, start: Start | None) -> Iterator[bytes]:
    left, size = num_bytes(tensor.dtype, tensor.shape), piece_bytes("delta", tensor)
    starts = start() if start is not None else None
    with contextlib.closing(pieces(pack.folder, pack.stored[name], size)) as data:
        for packed in packed_pieces(data, name):
            if not left:
                raise PackError(f"{name} opens to more bytes than its shape has; expected no more; get the pack again")
            now = min(left, size)
            yield opened(packed, next(starts) if starts else None, tensor.dtype, now)
            left -= now
    if left:
        raise PackError(f"{name} lacks {left:,} bytes; expected as many as its shape has; get the pack again")


def starts_of(base: Checkpoint, pack: Pack, donors: dict[str, TensorEntry]) -> dict[str, Start]:
    """For each tensor that started as its donor's, how to read those bytes from the base."""
    tensors = {name: tensor for name, _, tensor in tensors_of(pack.record.plan)}

    def reader(name: str) -> Start:
        return lambda: pieces(base.folder, donors[name], piece_bytes(pack.record.encoding, tensors[name]))

    return {name: reader(name) for name in donors if tensors[name].starts == "donor"}
