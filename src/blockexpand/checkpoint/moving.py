"""Bytes from file to file, in the kernel where it can, in constant memory where it cannot.

In: open files and ranges. Out: the same bytes at another place. Refused: a source that ends before its range.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from blockexpand.errors import CheckpointError

_CHUNK_BYTES = 64 << 20
"""One call's worth: large enough that calls cost nothing, small enough that the progress bar moves."""
_BUFFER_BYTES = 4 << 20

# Why Linux may not copy between two files that can be read and written: other file systems, old kernels,
# network and FUSE mounts, seccomp filters of container runtimes (man 2 copy_file_range).
_KERNEL_CANNOT = {
    errno.EXDEV,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.ETXTBSY,
}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bytes to move."""

    file: str
    """The source file's name."""
    source: int
    """Their offset there."""
    target: int
    """Their offset in the file being written."""
    num_bytes: int
    """How many."""


def write_whole(stream: io.RawIOBase, data: bytes) -> None:
    """Write all of the bytes: one call of an unbuffered stream may take fewer, and says so only in its result."""
    left = memoryview(data)
    while left:
        left = left[stream.write(left) or 0 :]


def start_writing(target: int, start: int, num_bytes: int) -> None:
    """Have the kernel begin to write these bytes to the disk, so that the flush at the end finds little left to do.

    On Linux the advice that bytes will not be needed begins to write those that are new, and drops only those that the
    disk already has (man 2 posix_fadvise): what was just copied stays in the page cache.
    """
    if sys.platform == "linux":
        os.posix_fadvise(target, start, num_bytes, os.POSIX_FADV_DONTNEED)


def move(source: int, target: int, piece: Range, advance: Callable[[float], None]) -> None:
    """Copy one range between two open files, calling `advance` with the bytes done since the last call.

    Raises:
        CheckpointError: the source ends before the range does.
    """
    done = _move_in_kernel(source, target, piece, advance) if sys.platform == "linux" else 0
    if done < piece.num_bytes:
        _move_by_hand(source, target, piece, done, advance)


def _move_in_kernel(source: int, target: int, piece: Range, advance: Callable[[float], None]) -> int:
    """How many bytes the kernel moved: all of them, or fewer where it cannot."""
    done = 0
    while done < piece.num_bytes:
        want = min(_CHUNK_BYTES, piece.num_bytes - done)
        try:
            moved = os.copy_file_range(source, target, want, piece.source + done, piece.target + done)
        except OSError as error:
            if error.errno in _KERNEL_CANNOT:
                return done
            raise
        if moved == 0:
            # The end of the source, or a file system that says so by mistake (procfs, FUSE): reading decides.
            return done
        done += moved
        advance(moved)
    return done


def _move_by_hand(source: int, target: int, piece: Range, done: int, advance: Callable[[float], None]) -> None:
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, piece.num_bytes - done)))
    while done < piece.num_bytes:
        want = min(len(buffer), piece.num_bytes - done)
        got = os.preadv(source, [buffer[:want]], piece.source + done)
        if got == 0:
            raise CheckpointError(
                f"{piece.file} ended at byte {piece.source + done:,} while it was copied; expected "
                f"{piece.num_bytes - done:,} more bytes; is something writing to the base? Start again when it is done"
            )
        written = 0
        while written < got:
            written += os.pwrite(target, buffer[written:got], piece.target + done + written)
        done += got
        advance(got)
