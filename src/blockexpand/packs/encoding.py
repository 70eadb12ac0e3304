"""How a pack's tensors are stored, and back: as they are, as compressed differences, or rounded to 8 bits.

In: a tensor's bytes in pieces, and those of what it started from. Out: the stored parts, or the bytes again.
Refused: parts that are not of the sizes the plan gives, and compressed bytes that do not open to exactly these. A piece
is 8 MiB, so memory does not grow with the model, whatever a stranger's file claims.

delta, without loss: numbers as whole numbers of their width, the donor's subtracted (nothing, where a block did not
start as its donor), the sign folded into the lowest bit, bytes of equal weight side by side, then zstd. What training
moved by little has few bits there. int8, with loss: in a matrix, each row times 127 / its largest number, rounded, and
that scale; vectors stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from blockexpand.checkpoint import TensorEntry, num_bytes, num_elements
from blockexpand.errors import PackError
from blockexpand.packs.record import Encoding
from blockexpand.records.plan import BlockTensor

if TYPE_CHECKING:
    import numpy as np

PIECE_BYTES = 8 << 20
"""Of a tensor, at once."""
SCALE = "#scale"
"""After a tensor's name: the scales of its rows."""
_LENGTH_BYTES = 4
"""Before each compressed piece: how many bytes it takes, little endian."""
_LEVEL = 3
"""zstd's own default."""
_WHOLE = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}
_ROUNDED = ("BF16", "F16", "F32")
_MOST = 127.0


def stored_as(encoding: Encoding, name: str, tensor: BlockTensor, stored: dict[str, TensorEntry]) -> dict[str, str]:
    """The parts that a tensor is stored as, and for each what is wrong with it in `stored`: nothing, or some words."""
    if encoding == "delta":
        entry, raw = stored.get(name), num_bytes(tensor.dtype, tensor.shape)
        # zstd adds at most 1/256 and some bytes to what it cannot compress (zstd.h, ZSTD_COMPRESSBOUND).
        most = raw + raw // 128 + 1024 * (1 + raw // PIECE_BYTES)
        if entry is None:
            return {name: "is missing"}
        fits = entry.dtype == "U8" and len(entry.shape) == 1 and entry.num_bytes <= most
        return {name: "" if fits else f"is {entry.dtype} {list(entry.shape)}; expected U8 of at most {most:,} bytes"}
    if encoding == "int8" and is_rounded(tensor):
        rows = num_elements(tensor.shape[:-1])
        wanted = {name: ("I8", tensor.shape), name + SCALE: ("F32", (rows,))}
    else:
        wanted = {name: (tensor.dtype, tensor.shape)}
    return {part: _wrong(stored.get(part), *what) for part, what in wanted.items()}


def _wrong(entry: TensorEntry | None, dtype: str, shape: tuple[int, ...]) -> str:
    if entry is None:
        return "is missing"
    if (entry.dtype, entry.shape) == (dtype, shape):
        return ""
    return f"is {entry.dtype} {list(entry.shape)}; expected {dtype} {list(shape)}"


def is_rounded(tensor: BlockTensor) -> bool:
    """Whether int8 rounds this tensor: it is a matrix of floats with numbers in it."""
    return len(tensor.shape) > 1 and tensor.dtype in _ROUNDED and num_elements(tensor.shape) > 0


def piece_bytes(encoding: Encoding, tensor: BlockTensor) -> int:
    """How many bytes of a tensor are encoded at once: whole rows, where rows have scales."""
    if encoding != "int8" or not is_rounded(tensor):
        return PIECE_BYTES
    row = num_bytes(tensor.dtype, tensor.shape[-1:])
    return max(1, PIECE_BYTES // row) * row


def compressed(piece: bytes, start: bytes | None, dtype: str) -> bytes:
    """One piece of a delta: its length, and the difference to `start` (same size; None: to zeros), compressed."""
    import numpy as np
    import pyarrow as pa

    numbers = np.frombuffer(piece, _whole(dtype))
    if start is not None:
        numbers = numbers - np.frombuffer(start, numbers.dtype)
    planes = np.ascontiguousarray(_folded(numbers).view(np.uint8).reshape(-1, numbers.itemsize).T)
    packed = pa.Codec("zstd", compression_level=_LEVEL).compress(planes.tobytes(), asbytes=True)
    return len(packed).to_bytes(_LENGTH_BYTES, "little") + packed


def opened(packed: bytes, start: bytes | None, dtype: str, size: int) -> bytes:
    """The other way: the `size` bytes of a piece without its length.

    Raises:
        PackError: the bytes do not open to so many.
    """
    import numpy as np
    import pyarrow as pa

    try:
        planes = pa.Codec("zstd").decompress(packed, decompressed_size=size, asbytes=True)
    except (pa.ArrowException, OSError) as error:
        raise PackError(f"compressed bytes do not open: {error}; expected {size:,} bytes; get the pack again") from None
    if len(planes) != size:
        raise PackError(f"compressed bytes open to {len(planes):,}; expected {size:,}; get the pack again")
    kind = np.dtype(_whole(dtype))
    folded = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(kind.itemsize, -1).T).view(kind).reshape(-1)
    one = kind.type(1)
    numbers = (folded >> one) ^ (kind.type(0) - (folded & one))
    if start is not None:
        numbers = numbers + np.frombuffer(start, kind)
    return numbers.tobytes()


def _folded(numbers: np.ndarray) -> np.ndarray:
    """Whole numbers, read as signed, so that those near zero are small: 0, -1, 1, -2 become 0, 1, 2, 3."""
    kind = numbers.dtype.type
    top = kind(8 * numbers.itemsize - 1)
    return (numbers << kind(1)) ^ (kind(0) - (numbers >> top))


def _whole(dtype: str) -> str:
    return _WHOLE[num_bytes(dtype, (1,))]


def rounded(piece: bytes, tensor: BlockTensor) -> tuple[bytes, bytes]:
    """Whole rows as 8-bit numbers, and the rows' scales."""
    import numpy as np

    rows = floats_of(piece, tensor.dtype).reshape(-1, tensor.shape[-1])
    scales = np.abs(rows).max(axis=1) / np.float32(_MOST)
    safe = np.where(scales > 0, scales, np.float32(1))
    return np.rint(rows / safe[:, None]).astype(np.int8).tobytes(), scales.astype("<f4").tobytes()


def unrounded(numbers: bytes, scales: bytes, tensor: BlockTensor) -> bytes:
    """The other way, in the tensor's own precision."""
    import numpy as np

    rows = np.frombuffer(numbers, np.int8).reshape(-1, tensor.shape[-1]).astype(np.float32)
    return bytes_of(rows * np.frombuffer(scales, "<f4")[:, None], tensor.dtype)


def floats_of(piece: bytes, dtype: str) -> Any:
    """The numbers in some bytes, of F64 as float64, of narrower ones as float32."""
    import numpy as np

    if dtype == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(piece, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F64":
        return np.frombuffer(piece, "<f8")
    return np.frombuffer(piece, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float32)


def bytes_of(values: Any, dtype: str) -> bytes:
    """The other way: each number rounded to the nearest one of its precision."""
    import numpy as np

    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        # To the nearest, ties to even.
        return (
            ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
            .astype("<u2")
            .tobytes()
        )
    return values.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def packed_pieces(data: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The compressed pieces of a stored delta, whose bytes come in any cut; each without its length.

    Raises:
        PackError: the last one is cut short, or one claims more than a piece can take.
    """
    held = b""
    most = PIECE_BYTES + PIECE_BYTES // 128 + 1024
    for part in data:
        held += part
        while len(held) >= _LENGTH_BYTES:
            length = int.from_bytes(held[:_LENGTH_BYTES], "little")
            if length > most:
                raise PackError(
                    f"{name}: a compressed piece claims {length:,} bytes; expected at most {most:,}; get the pack again"
                )
            if len(held) < _LENGTH_BYTES + length:
                break
            yield held[_LENGTH_BYTES : _LENGTH_BYTES + length]
            held = held[_LENGTH_BYTES + length :]
    if held:
        raise PackError(f"{name}: {len(held):,} bytes are left after its last piece; expected none; get the pack again")
