"""Every tensor's fingerprint, and whether its numbers are numbers, in one pass over the bytes.

In: an opened checkpoint. Out: for each tensor its SHA-256, how many of its values are NaN or infinite, and
whether it is all zeros. Bits are looked at where they lie; nothing is decoded. Reading and hashing run in
threads, because hashlib and numpy let go of the interpreter's lock while they work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from blockexpand.checkpoint.header import TensorEntry, open_to_read
from blockexpand.checkpoint.reading import Checkpoint
from blockexpand.errors import CheckpointError
from blockexpand.progress import bar

# Small enough to stay in a core's cache between hashing and looking at the exponents; a multiple of 8 bytes.
_CHUNK_BYTES = 1 << 20
_NUM_THREADS = 2

# A value is NaN or infinite when every bit of its exponent is set (IEEE 754; bfloat16 is the upper half of
# float32).
_EXPONENT = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    # E4M3 has no infinities, and its NaN has the mantissa's bits set too (OCP 8-bit floating point 1.0, section 5.2).
    "F8_E4M3": ("u1", 0x7F),
    "F8_E5M2": ("u1", 0x7C),
}


@dataclass(frozen=True, kw_only=True)
class TensorDigest:
    """What one pass over a tensor's bytes tells."""

    digest: str
    """`sha256:` and the hash of the tensor's bytes."""
    num_not_finite: int
    """How many values are NaN or infinite (0 for dtypes that have neither)."""
    all_zero: bool
    """Whether every byte is zero."""


def digest_tensors(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, TensorDigest]:
    """The digests of the named tensors, or of all of them.

    Raises:
        CheckpointError: a file ended before a tensor did.
    """
    from concurrent.futures import ThreadPoolExecutor  # 15 ms, and planning imports this module

    chosen = list(checkpoint.tensors if names is None else names)
    total = sum(checkpoint.tensors[name].num_bytes for name in chosen)
    with bar("reading weights", total, "B") as progress, ThreadPoolExecutor(_NUM_THREADS) as pool:
        results = pool.map(lambda name: _digest(checkpoint, checkpoint.tensors[name]), chosen)
        digests = {}
        for name, result in zip(chosen, results, strict=True):
            digests[name] = result
            progress.advance(checkpoint.tensors[name].num_bytes)
    return digests


def refuse_not_finite(checkpoint: Checkpoint, digests: dict[str, TensorDigest]) -> None:
    """Refuse weights that are not numbers: no proof about them means anything.

    Raises:
        CheckpointError: some tensor holds NaN or infinity; the first is named, with how many it holds.
    """
    bad = {name: result.num_not_finite for name, result in digests.items() if result.num_not_finite}
    if bad:
        name, count = next(iter(bad.items()))
        entry = checkpoint.tensors[name]
        more = f" ({len(bad)} tensors hold such)" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.folder / entry.file}: the tensor {name!r} holds {count:,} NaN or infinite values of "
            f"{entry.num_elements:,}{more}; expected finite weights; use another checkpoint of this model"
        )


def _digest(checkpoint: Checkpoint, entry: TensorEntry) -> TensorDigest:
    hasher = hashlib.sha256()
    count_not_finite = _counter(entry.dtype)
    num_not_finite, all_zero = 0, True
    with open_to_read(checkpoint.folder / entry.file) as stream:
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, entry.num_bytes)))
        position = entry.start
        while position < entry.end:
            chunk = buffer[: min(len(buffer), entry.end - position)]
            _fill(stream.fileno(), chunk, position, entry.file)
            hasher.update(chunk)
            num_not_finite += count_not_finite(chunk)
            all_zero = all_zero and not any(chunk[:64]) and _is_zero(chunk)
            position += len(chunk)
    return TensorDigest(digest=f"sha256:{hasher.hexdigest()}", num_not_finite=num_not_finite, all_zero=all_zero)


def _fill(handle: int, chunk: memoryview, position: int, file: str) -> None:
    filled = 0
    while filled < len(chunk):
        got = os.preadv(handle, [chunk[filled:]], position + filled)
        if got == 0:
            raise CheckpointError(
                f"{file} ended at byte {position + filled:,} while it was read; expected {len(chunk) - filled:,} more; "
                "is something writing to it? Start again when it is done"
            )
        filled += got


def _is_zero(chunk: memoryview) -> bool:
    import numpy as np

    return not np.frombuffer(chunk, dtype=np.uint8).any()


def _count_none(chunk: memoryview) -> int:
    del chunk
    return 0


def _counter(dtype: str) -> Callable[[memoryview], int]:
    if dtype not in _EXPONENT:
        return _count_none
    import numpy as np  # 80 ms: only for who reads weights

    kind, mask = _EXPONENT[dtype]
    exponent = np.array(mask, dtype=kind)

    def count(chunk: memoryview) -> int:
        bits: Any = np.frombuffer(chunk, dtype=kind) & exponent
        return int(np.count_nonzero(bits == exponent))

    return count
