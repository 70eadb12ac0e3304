"""Lines and texts of files, as they are or compressed; what is broken is named, with its place.

In: a path whose name says how it is compressed (.gz, .zst). Out: lines with how much of the file was read for
them, or the whole text. Refused: what is cut short or damaged, lines beyond a limit, what is not UTF-8.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, cast

from blockexpand.errors import CorpusError

MOST_LINE_BYTES = 1 << 28
"""A longer line is a file without line ends, and would fill the memory."""


def bare_name(name: str) -> str:
    """The name without what says how it is compressed: `a.jsonl.gz` -> `a.jsonl`."""
    return name.removesuffix(".gz").removesuffix(".zst")


@contextlib.contextmanager
def opened(path: Path) -> Generator[tuple[IO[bytes], IO[bytes]]]:
    """The file's content as a stream of bytes, and the raw file, whose position tells how far reading is.

    Raises:
        CorpusError: it cannot be opened, or its content is damaged or cut short.
    """
    try:
        with path.open("rb") as raw:
            yield _content(path, raw), raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _broken(path, error) from None
    except OSError as error:
        if path.suffix == ".zst" and error.errno is None:  # how Arrow reports damage
            raise _broken(path, error) from None
        raise CorpusError(f"cannot read {path}: {error.strerror or error}") from None


def _broken(path: Path, error: Exception) -> CorpusError:
    why = " ".join(str(error).split())
    return CorpusError(f"{path} is damaged or cut short: {why}; what stands behind is lost: fetch it again")


def _content(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if path.suffix == ".zst":
        import pyarrow as pa  # has zstd built in; Python does from 3.14 on

        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 20))
    return raw


def lines(path: Path) -> Iterator[tuple[bytes | None, float]]:
    """Every line without its end, and the share of the file read by then; None for a line beyond the limit."""
    size = max(path.stat().st_size, 1)
    with opened(path) as (stream, raw):
        first = True
        while line := stream.readline(MOST_LINE_BYTES):
            too_long = not line.endswith(b"\n") and len(line) == MOST_LINE_BYTES
            while too_long and not line.endswith(b"\n") and line:
                line = stream.readline(MOST_LINE_BYTES)
            if first:
                line, first = line.removeprefix(b"\xef\xbb\xbf"), False
            yield None if too_long else line.rstrip(b"\r\n"), min(raw.tell() / size, 1.0)


def read_bytes(path: Path) -> bytes:
    """The whole content."""
    with opened(path) as (stream, _):
        return stream.read()


def decoded(data: bytes, place: str) -> str:
    """The bytes as text.

    Raises:
        CorpusError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{place} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first, e.g. iconv -f latin1 "
            "-t utf-8"
        ) from None
