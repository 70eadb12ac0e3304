"""Bytes read, written and moved in constant memory, by two threads that stop together.

In: open files, byte ranges, and work over a checkpoint's tensors. Out: the same bytes elsewhere, or what the work
found. One call to the system may take fewer bytes than it was asked for (2 GiB is the most that Linux reads at once),
so every call here goes on until all is done. Refused: a file that ends before its range.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event
from typing import TypeVar

from blockexpand.checkpoint.header import ALIGNMENT_BYTES, TensorEntry
from blockexpand.errors import CheckpointError

Job = TypeVar("Job")
Result = TypeVar("Result")

NUM_THREADS = 2
"""One reads or hashes while the other writes; a third gained nothing on two cores (docs/log.md)."""
WINDOW_BYTES = 8 << 20
"""Done at once: large enough that calls cost nothing, small enough that what was copied is still in the page cache
when it is hashed, and that an error stops everything soon."""
_CHUNK_BYTES = 256 << 10
"""Stays in a core's second cache between reading, hashing and looking at the exponents; a multiple of 8."""
_ALONE_BYTES = 64 << 20
"""Less work than this is done without threads, so that small checkpoints are written by the same system calls in the
same order each time."""
_RUN_BYTES = 1 << 30
"""Neighbouring tensors that one thread takes at once."""
_BUFFER_BYTES = 4 << 20

# Why Linux may not copy between two files that can be read and written: other file systems, old kernels,
# network and FUSE mounts, seccomp filters of container runtimes (man 2 copy_file_range).
_KERNEL_CANNOT = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}


def read_whole(handle: int, into: memoryview, start: int, file: str) -> None:
    """Fill `into` with the bytes of an open file from `start` on; `file` names it in errors.

    Raises:
        CheckpointError: the file ends before.
    """
    filled = 0
    while filled < len(into):
        got = os.preadv(handle, [into[filled:]], start + filled)
        if got == 0:
            raise CheckpointError(
                f"{file} ended at byte {start + filled:,} while it was read; expected {len(into) - filled:,} more; is "
                "something writing to it? Start again when it is done"
            )
        filled += got


def write_whole(stream: io.RawIOBase, data: bytes) -> None:
    """Write all of the bytes: one call of an unbuffered stream may take fewer, and says so only in its result."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) or 0 :]


def chunks(handle: int, start: int, end: int, file: str) -> Iterator[bytearray]:
    """The file's bytes in pieces; each is only good until the next is asked for.

    Raises:
        CheckpointError: the file ended before `end`.
    """
    buffer = bytearray(min(_CHUNK_BYTES, end - start))
    while start < end:
        if end - start < len(buffer):
            buffer = bytearray(end - start)
        read_whole(handle, memoryview(buffer), start, file)
        yield buffer
        start += len(buffer)


def start_writing(target: int, start: int, num_bytes: int) -> None:
    """Have the kernel begin to write these bytes to the disk, so that the flush at the end finds little left to do.

    On Linux the advice that bytes will not be needed begins to write those that are new, and drops only those that the
    disk already has (man 2 posix_fadvise): what was just copied stays in the page cache.
    """
    if sys.platform == "linux":
        os.posix_fadvise(target, start, num_bytes, os.POSIX_FADV_DONTNEED)


def move(source: int, start: int, end: int, target: int, to: int, file: str) -> None:
    """Copy the bytes `start` to `end` of one open file to `to` in another; `file` names the source in errors.

    Raises:
        CheckpointError: the source ends before the range does.
    """
    if sys.platform == "linux":
        while start < end:
            try:
                moved = os.copy_file_range(source, target, end - start, start, to)
            except OSError as error:
                if error.errno not in _KERNEL_CANNOT:
                    raise
                break
            if moved == 0:
                # The end of the source, or a file system that says so by mistake (procfs, FUSE): reading decides.
                break
            start, to = start + moved, to + moved
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, end - start)))
    while start < end:
        piece = buffer[: end - start]
        read_whole(source, piece, start, file)
        written = 0
        while written < len(piece):
            written += os.pwrite(target, piece[written:], to + written)
        start, to = start + len(piece), to + len(piece)


def in_threads(work: Callable[[Job, Event], Result], jobs: Sequence[Job], num_bytes: int) -> list[Result]:
    """`work(job, stopping)` for each job, in their order; the first error stops the others within a window.

    `work` looks at `stopping` now and then, and ends early when it is set.
    """
    stopping = Event()
    if num_bytes < _ALONE_BYTES or len(jobs) < 2:
        return [work(job, stopping) for job in jobs]
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait  # 15 ms, and planning imports this room

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        futures = [pool.submit(work, job, stopping) for job in jobs]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in futures if future in done]
        finally:
            # After an error or Ctrl-C: what has not begun does not begin, and what runs ends at its next window.
            stopping.set()
            pool.shutdown(cancel_futures=True)


def runs_of(entries: Iterable[TensorEntry]) -> list[tuple[TensorEntry, ...]]:
    """The entries in runs of neighbours in one file, in an order in which two threads mostly work on two files."""
    shards: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        shards.setdefault(entry.file, []).append(entry)
    found = []
    for number, shard in enumerate(shards.values()):
        for index, run in enumerate(_cut(sorted(shard, key=lambda e: (e.start, e.end)))):
            found.append(((number // NUM_THREADS, index, number), run))
    return [run for _, run in sorted(found, key=lambda pair: pair[0])]


def _cut(entries: list[TensorEntry]) -> Iterator[tuple[TensorEntry, ...]]:
    run: list[TensorEntry] = []
    for entry in entries:
        if run and entry.end - run[0].start > _RUN_BYTES:
            yield tuple(run)
            run = []
        run.append(entry)
    yield tuple(run)


def windows(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The range in pieces that begin at round offsets, but for the first: only such can be shared by a reflink."""
    while start < end:
        size = -start % ALIGNMENT_BYTES or WINDOW_BYTES
        yield start, min(start + size, end)
        start = min(start + size, end)
