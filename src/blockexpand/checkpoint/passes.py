"""One pass over a checkpoint's bytes: tensors hashed, compared with another checkpoint's, or copied to new files.

In: an opened checkpoint. Out: for each tensor its BLAKE3, how many of its values are NaN or infinite, and whether it
is all zeros; or which tensors of another checkpoint do not have the bytes they should; or the bytes at their new
places. A tensor is read once: it goes to all of its places (its own and those of the blocks it is the donor of) and
is hashed while it is in memory. Bits are looked at where they lie; nothing is decoded, and memory is constant.

BLAKE3 takes a quarter of the time of SHA-256, even where the processor has instructions for that (docs/log.md): it
costs less than moving the bytes. numpy, which takes 16 MB and 80 ms, is imported only to count what looks like NaN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from blockexpand.checkpoint.folder import Checkpoint
from blockexpand.checkpoint.header import TensorEntry, open_to_read
from blockexpand.checkpoint.streams import WINDOW_BYTES, chunks, in_threads, move, runs_of, start_writing, windows
from blockexpand.errors import CheckpointError
from blockexpand.progress import bar
from blockexpand.units import DTYPES

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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one pass over two checkpoints tells."""

    different: frozenset[str]
    """The second's tensors that do not have the bytes they should have."""
    num_not_finite: dict[str, int]
    """For each tensor of the first that was read, how many values are NaN or infinite."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor's bytes go."""

    file: str
    """The file's name in the new folder."""
    start: int
    """The offset of the first byte."""


def digest_tensors(checkpoint: Checkpoint, names: Iterable[str] | None = None) -> dict[str, TensorDigest]:
    """The digests of the named tensors, or of all of them.

    Raises:
        CheckpointError: a file ended before a tensor did.
    """
    chosen = {name: checkpoint.tensors[name] for name in (checkpoint.tensors if names is None else names)}
    digests = _pass(checkpoint, chosen.values(), {}, checkpoint.folder, "reading weights", digest=True)
    return {name: digests[entry] for name, entry in chosen.items()}


def copy_tensors(
    base: Checkpoint, places: Mapping[TensorEntry, Sequence[Place]], folder: Path, *, digest: bool
) -> dict[str, TensorDigest]:
    """Copy every tensor of the base to its places in existing files in `folder`; the digests of all of them, or none.

    Raises:
        CheckpointError: a file of the base ended early.
    """
    digests = _pass(base, base.tensors.values(), places, folder, "copying weights", digest=digest)
    return {name: digests[entry] for name, entry in base.tensors.items()} if digest else {}


def _pass(
    source: Checkpoint,
    entries: Iterable[TensorEntry],
    places: Mapping[TensorEntry, Sequence[Place]],
    folder: Path,
    title: str,
    *,
    digest: bool,
) -> dict[TensorEntry, TensorDigest]:
    """Read the entries once, in the order of their bytes: each goes to its places in `folder`, and is hashed."""
    runs, lock = runs_of(entries), Lock()
    total = sum(entry.num_bytes * max(len(places.get(entry, ())), int(not places)) for run in runs for entry in run)

    def take(run: tuple[TensorEntry, ...], stopping: Event) -> dict[TensorEntry, TensorDigest]:
        found: dict[TensorEntry, TensorDigest] = {}
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(open_to_read(source.folder / run[0].file)).fileno()
            # Unbuffered, because only the numbers of the open files are used.
            targets = {
                file: stack.enter_context(open(folder / file, "r+b", buffering=0)).fileno()
                for file in sorted({place.file for entry in run for place in places.get(entry, ())})
            }
            for entry in run:
                inspection = Inspection(entry) if digest else None
                for start, end in windows(entry.start, entry.end):
                    if stopping.is_set():
                        return found
                    for place in places.get(entry, ()):
                        to = place.start + start - entry.start
                        move(handle, start, end, targets[place.file], to, entry.file)
                        if end - start == WINDOW_BYTES:
                            start_writing(targets[place.file], to, WINDOW_BYTES)
                    if inspection is not None:
                        inspection.read(handle, end)
                    with lock:
                        progress.advance((end - start) * max(len(places.get(entry, ())), int(not places)))
                if inspection is not None:
                    found[entry] = inspection.result()
        return found

    with bar(title, total, "B") as progress:
        results = in_threads(take, runs, total)
    return {entry: result for found in results for entry, result in found.items()}


def compare_tensors(one: Checkpoint, other: Checkpoint, names: Mapping[str, Sequence[str]]) -> Comparison:
    """Compare each of the first's named tensors with those of the second, which have its dtype and shape.

    Comparing takes a tenth of the time that hashing both would.

    Raises:
        CheckpointError: a file ended before a tensor did.
    """
    of_entry: dict[TensorEntry, list[str]] = {}
    for name in names:
        of_entry.setdefault(one.tensors[name], []).append(name)
    different: set[str] = set()
    counts: dict[str, int] = {}
    runs, lock = runs_of(of_entry), Lock()
    total = sum(one.tensors[name].num_bytes * (1 + len(others)) for name, others in names.items())

    def compare(run: tuple[TensorEntry, ...], stopping: Event) -> None:
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(open_to_read(one.folder / run[0].file)).fileno()
            entries = {n: other.tensors[n] for entry in run for name in of_entry[entry] for n in names[name]}
            files = {
                file: stack.enter_context(open_to_read(other.folder / file)).fileno()
                for file in sorted({e.file for e in entries.values()})
            }
            for name in (name for entry in run for name in of_entry[entry]):
                if stopping.is_set():
                    return
                entry = one.tensors[name]
                others = {n: chunks(files[e.file], e.start, e.end, e.file) for n in names[name] for e in [entries[n]]}
                count = 0
                for expected in chunks(handle, entry.start, entry.end, entry.file):
                    unequal = {n for n, stream in others.items() if next(stream) != expected}
                    count += count_not_finite(expected, entry.dtype)
                    with lock:
                        different.update(unequal)
                        progress.advance(len(expected) * (1 + len(others)))
                counts[name] = count

    with bar("comparing weights", total, "B") as progress:
        in_threads(compare, runs, total)
    return Comparison(different=frozenset(different), num_not_finite=counts)


def refuse_not_finite(checkpoint: Checkpoint, found: Mapping[str, TensorDigest | int]) -> None:
    """Refuse weights that are not numbers: no proof about them means anything.

    `found` is each tensor's digest, or how many such values it holds.

    Raises:
        CheckpointError: some tensor holds NaN or infinity; the first is named, with how many it holds.
    """
    counts = {name: one if isinstance(one, int) else one.num_not_finite for name, one in found.items()}
    bad = {name: count for name, count in counts.items() if count}
    if bad:
        name, count = next(iter(bad.items()))
        entry = checkpoint.tensors[name]
        more = f" ({len(bad)} tensors hold such)" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{checkpoint.folder / entry.file}: the tensor {name!r} holds {count:,} NaN or infinite values of "
            f"{entry.num_elements:,}{more}; expected finite weights; use another checkpoint of this model"
        )


def new_hasher() -> tuple[str, Any]:
    """What tensors are hashed with, and its name."""
    from blake3 import blake3

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
