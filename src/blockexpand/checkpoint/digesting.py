"""Every tensor's fingerprint, and whether its numbers are numbers, in one pass over the bytes.

In: an opened checkpoint. Out: for each tensor its BLAKE3, how many of its values are NaN or infinite, and
whether it is all zeros. Bits are looked at where they lie; nothing is decoded. Reading and hashing run in
threads, because the hash function lets go of the interpreter's lock while it works.

BLAKE3 takes a quarter of the time of SHA-256, even where the processor has instructions for that (docs/log.md): it
costs less than moving the bytes. Folders written by version 0.1 have `sha256:` digests.

numpy, which takes 16 MB and 80 ms, is imported only to count what looks like NaN.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

from blockexpand.checkpoint.header import TensorEntry, open_to_read
from blockexpand.checkpoint.reading import Checkpoint
from blockexpand.checkpoint.working import in_threads, runs_of, windows
from blockexpand.errors import CheckpointError
from blockexpand.progress import bar
from blockexpand.units import DTYPES

_CHUNK_BYTES = 256 << 10
"""Stays in a core's second cache between reading, hashing and looking at the exponents; a multiple of 8."""

_WIDEST = 8
"""Bytes of the widest number."""
_HIGHEST = {
    dtype: bytes(byte for byte in range(256) if byte & (top := kind.exponent >> kind.bits - 8) == top)
    for dtype, kind in DTYPES.items()
    if kind.exponent
}
"""What the highest byte of a NaN or an infinity can be: few values, which weights (below 1e38) hardly ever have."""


@dataclass(frozen=True, kw_only=True)
class TensorDigest:
    """What one pass over a tensor's bytes tells."""

    digest: str
    """The hash of the tensor's bytes, with the algorithm's name before it: `blake3:..`."""
    num_not_finite: int
    """How many values are NaN or infinite (0 for dtypes that have neither)."""
    all_zero: bool
    """Whether every byte is zero."""


def digest_tensors(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, TensorDigest]:
    """The digests of the named tensors, or of all of them.

    Raises:
        CheckpointError: a file ended before a tensor did.
    """
    chosen = {name: checkpoint.tensors[name] for name in (checkpoint.tensors if names is None else names)}
    runs = runs_of(chosen.values())
    total = sum(entry.num_bytes for entry in chosen.values())
    with bar("reading weights", total, "B") as progress:
        lock = Lock()

        def digest(run: tuple[TensorEntry, ...], stopping: Event) -> list[TensorDigest]:
            found = []
            with open_to_read(checkpoint.folder / run[0].file) as stream:
                for entry in run:
                    inspection = Inspection(entry)
                    for start, end in windows(entry.start, entry.end):
                        if stopping.is_set():
                            return found
                        inspection.read(stream.fileno(), end)
                        with lock:
                            progress.advance(end - start)
                    found.append(inspection.result())
            return found

        results = in_threads(digest, runs, total)
    digests = {e: d for run, found in zip(runs, results, strict=True) for e, d in zip(run, found, strict=True)}
    return {name: digests[entry] for name, entry in chosen.items()}


def refuse_not_finite(checkpoint: Checkpoint, digests: dict[str, TensorDigest]) -> None:
    """Refuse weights that are not numbers: no proof about them means anything.

    Raises:
        CheckpointError: some tensor holds NaN or infinity; the first is named, with how many it holds.
    """
    refuse_counted(checkpoint, {name: result.num_not_finite for name, result in digests.items()})


def refuse_counted(checkpoint: Checkpoint, num_not_finite: Mapping[str, int]) -> None:
    """The same for who counted without hashing."""
    bad = {name: count for name, count in num_not_finite.items() if count}
    if bad:
        name, count = next(iter(bad.items()))
        entry = checkpoint.tensors[name]
        more = f" ({len(bad)} tensors hold such)" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.folder / entry.file}: the tensor {name!r} holds {count:,} NaN or infinite values of "
            f"{entry.num_elements:,}{more}; expected finite weights; use another checkpoint of this model"
        )


def new_hasher() -> tuple[str, Any]:
    """What tensors are hashed with, and its name: BLAKE3, or SHA-256 where only this package was copied to."""
    try:
        from blake3 import blake3
    except ModuleNotFoundError:
        return "sha256", hashlib.sha256()
    return "blake3", blake3()


class Inspection:
    """One tensor's bytes, looked at in order as they are read."""

    def __init__(self, entry: TensorEntry) -> None:
        """Begin with the tensor's first byte."""
        self._entry, self._position = entry, entry.start
        self._algorithm, self._hasher = new_hasher()
        self._num_not_finite, self._all_zero = 0, True

    def read(self, handle: int, end: int) -> None:
        """Look at the file's bytes up to `end`; the last number waits for the next call when `end` cuts it."""
        if end < self._entry.end:
            end -= (end - self._entry.start) % _WIDEST
        start, self._position = self._position, max(end, self._position)
        for chunk in chunks(handle, start, end, self._entry.file):
            self._hasher.update(chunk)
            self._all_zero = self._all_zero and chunk == bytes(len(chunk))
            self._num_not_finite += count_not_finite(chunk, self._entry.dtype)

    def result(self) -> TensorDigest:
        """What was found."""
        digest = f"{self._algorithm}:{self._hasher.hexdigest()}"
        return TensorDigest(digest=digest, num_not_finite=self._num_not_finite, all_zero=self._all_zero)


def chunks(handle: int, start: int, end: int, file: str) -> Iterator[bytearray]:
    """The file's bytes in pieces; each is only good until the next is asked for.

    Raises:
        CheckpointError: the file ended before `end`.
    """
    buffer = bytearray(min(_CHUNK_BYTES, end - start))
    while start < end:
        if end - start < len(buffer):
            buffer = bytearray(end - start)
        _fill(handle, memoryview(buffer), start, file)
        yield buffer
        start += len(buffer)


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


def count_not_finite(chunk: bytearray, dtype: str) -> int:
    """How many of the numbers are NaN or infinite; 0 for dtypes that have neither."""
    if dtype not in _HIGHEST:
        return 0
    width = DTYPES[dtype].bits // 8
    highest = chunk[width - 1 :: width]
    if all(highest.find(byte) < 0 for byte in _HIGHEST[dtype]):
        return 0
    import numpy as np

    kind = f"<u{width}"
    exponent = np.array(DTYPES[dtype].exponent, dtype=kind)
    bits: Any = np.frombuffer(chunk, dtype=kind) & exponent
    return int(np.count_nonzero(bits == exponent))
