"""Work over a checkpoint's bytes: cut into jobs, done in two threads, stopped together.

In: jobs and a function that does one. Out: what it returned for each, in their order. The first error stops the
others within a window and is raised. Little work is done in order in the calling thread, so that small
checkpoints are written by the same system calls in the same order each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import Event
from typing import TypeVar

from blockexpand.checkpoint.header import ALIGNMENT_BYTES, TensorEntry

Job = TypeVar("Job")
Result = TypeVar("Result")

NUM_THREADS = 2
"""One reads or hashes while the other writes; a third gained nothing on two cores (docs/log.md)."""
WINDOW_BYTES = 8 << 20
"""Done at once: large enough that calls cost nothing, small enough that what was copied is still in the page cache
when it is hashed, and that an error stops everything soon."""
_ALONE_BYTES = 64 << 20
"""Less work than this is done without threads."""
_RUN_BYTES = 1 << 30
"""Neighbouring tensors that one thread takes at once."""


def in_threads(work: Callable[[Job, Event], Result], jobs: Sequence[Job], num_bytes: int) -> list[Result]:
    """`work(job, stopping)` for each job; `work` looks at `stopping` now and then, and ends early when it is set."""
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
