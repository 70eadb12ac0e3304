"""A base's tensors copied to their places in new files, and looked at while they are in memory.

In: an opened base, the places of each tensor's bytes, and existing files of full length. Out: the bytes there, and
each tensor's digest when asked for. The base is read once, in the order of its bytes: a tensor goes to all of its
places (its own and those of the blocks it is the donor of) and is hashed before the next one is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from blockexpand.checkpoint.digesting import Inspection, TensorDigest
from blockexpand.checkpoint.header import TensorEntry, open_to_read
from blockexpand.checkpoint.moving import Range, move, start_writing
from blockexpand.checkpoint.reading import Checkpoint
from blockexpand.checkpoint.working import WINDOW_BYTES, in_threads, runs_of, windows
from blockexpand.progress import Bar, bar


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor's bytes go."""

    file: str
    """The file's name in the new folder."""
    start: int
    """The offset of the first byte."""


def copy_tensors(
    base: Checkpoint, places: Mapping[TensorEntry, Sequence[Place]], folder: Path, *, digest: bool
) -> dict[str, TensorDigest]:
    """Copy every tensor of the base to its places in `folder`; the digests of all of them, or none.

    Raises:
        CheckpointError: a file of the base ended early.
    """
    num_bytes = sum(entry.num_bytes * len(found) for entry, found in places.items())
    runs = runs_of(base.tensors.values())
    with bar("copying weights", num_bytes, "B") as progress:
        copier = _Copier(base=base, places=places, folder=folder, digest=digest, progress=progress, lock=Lock())
        results = in_threads(copier.copy_run, runs, num_bytes)
    if not digest:
        return {}
    found = {e: d for run, digests in zip(runs, results, strict=True) for e, d in zip(run, digests, strict=True)}
    return {name: found[entry] for name, entry in base.tensors.items()}


@dataclass(frozen=True, kw_only=True)
class _Copier:
    """What all threads need."""

    base: Checkpoint
    places: Mapping[TensorEntry, Sequence[Place]]
    folder: Path
    digest: bool
    progress: Bar
    lock: Lock

    def copy_run(self, run: tuple[TensorEntry, ...], stopping: Event) -> list[TensorDigest]:
        """Copy neighbours in one file; their digests."""
        files = {place.file for entry in run for place in self.places.get(entry, ())}
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(open_to_read(self.base.folder / run[0].file)).fileno()
            # Unbuffered, because only the numbers of the open files are used.
            targets = {
                file: stack.enter_context(open(self.folder / file, "r+b", buffering=0)).fileno()
                for file in sorted(files)
            }
            digests = []
            for entry in run:
                inspection = Inspection(entry) if self.digest else None
                for start, end in windows(entry.start, entry.end):
                    if stopping.is_set():
                        return digests
                    self._copy_window(source, targets, entry, (start, end))
                    if inspection is not None:
                        inspection.read(source, end)
                if inspection is not None:
                    digests.append(inspection.result())
        return digests

    def _copy_window(self, source: int, targets: dict[str, int], entry: TensorEntry, window: tuple[int, int]) -> None:
        start, end = window
        for place in self.places.get(entry, ()):
            target = place.start + start - entry.start
            piece = Range(file=entry.file, source=start, target=target, num_bytes=end - start)
            move(source, targets[place.file], piece, self._advance)
            if piece.num_bytes == WINDOW_BYTES:
                start_writing(targets[place.file], target, piece.num_bytes)

    def _advance(self, amount: float) -> None:
        with self.lock:
            self.progress.advance(amount)
