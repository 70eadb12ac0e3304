"""Two checkpoints' tensors, byte against byte, in one pass over both and in constant memory.

In: two opened checkpoints, and for each tensor of the first the tensors of the second that should have its bytes.
Out: which of them do not, and how many values of each are NaN or infinite. Comparing takes a tenth of the time that
hashing both would.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Event, Lock

from blockexpand.checkpoint.digesting import chunks, count_not_finite
from blockexpand.checkpoint.header import TensorEntry, open_to_read
from blockexpand.checkpoint.reading import Checkpoint
from blockexpand.checkpoint.working import in_threads, runs_of
from blockexpand.progress import Bar, bar


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What one pass over two checkpoints tells."""

    different: frozenset[str]
    """The second's tensors that do not have the bytes they should have."""
    num_not_finite: dict[str, int]
    """For each tensor of the first that was read, how many values are NaN or infinite."""


def compare_tensors(one: Checkpoint, other: Checkpoint, names: Mapping[str, Sequence[str]]) -> Comparison:
    """Compare each of the first's named tensors with those of the second, which have its dtype and shape.

    Raises:
        CheckpointError: a file ended before a tensor did.
    """
    of_entry: dict[TensorEntry, list[str]] = {}
    for name in names:
        of_entry.setdefault(one.tensors[name], []).append(name)
    runs = runs_of(of_entry)
    num_bytes = sum(one.tensors[name].num_bytes * (1 + len(others)) for name, others in names.items())
    with bar("comparing weights", num_bytes, "B") as progress:
        comparer = _Comparer(one=one, other=other, names=names, of_entry=of_entry, progress=progress, lock=Lock())
        results = in_threads(comparer.compare_run, runs, num_bytes)
    return Comparison(
        different=frozenset(name for different, _ in results for name in different),
        num_not_finite={name: count for _, counts in results for name, count in counts.items()},
    )


@dataclass(frozen=True, kw_only=True)
class _Comparer:
    """What all threads need."""

    one: Checkpoint
    other: Checkpoint
    names: Mapping[str, Sequence[str]]
    of_entry: Mapping[TensorEntry, Sequence[str]]
    progress: Bar
    lock: Lock

    def compare_run(self, run: tuple[TensorEntry, ...], stopping: Event) -> tuple[set[str], dict[str, int]]:
        """Compare neighbours in one file: the names that differ, and the counts of what is not finite."""
        different: set[str] = set()
        counts: dict[str, int] = {}
        with contextlib.ExitStack() as stack:
            handle = stack.enter_context(open_to_read(self.one.folder / run[0].file)).fileno()
            others = [self.other.tensors[n] for entry in run for name in self.of_entry[entry] for n in self.names[name]]
            files = {
                file: stack.enter_context(open_to_read(self.other.folder / file)).fileno()
                for file in sorted({entry.file for entry in others})
            }
            for entry in run:
                for name in self.of_entry[entry]:
                    if stopping.is_set():
                        break
                    counts[name] = self._compare(handle, files, name, different)
        return different, counts

    def _compare(self, handle: int, files: Mapping[str, int], name: str, different: set[str]) -> int:
        entry, count = self.one.tensors[name], 0
        others = {n: self.other.tensors[n] for n in self.names[name]}
        streams = {n: chunks(files[e.file], e.start, e.end, e.file) for n, e in others.items()}
        for expected in chunks(handle, entry.start, entry.end, entry.file):
            different |= {n for n, stream in streams.items() if next(stream) != expected}
            count += count_not_finite(expected, entry.dtype)
            with self.lock:
                self.progress.advance(len(expected) * (1 + len(others)))
        return count
