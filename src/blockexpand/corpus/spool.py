"""The unfinished corpus on disk: what `prepare` has done so far, and where it goes on.

In: tokens, batch by batch. Out: `<out>.partial` beside the output: for each split and source the tokens behind one
another, and where each document's begin; the journal says up to which byte each file counts, so whatever a kill
left behind those is cut off. Refused: a journal of other inputs, settings or another tokenizer, and a folder that
another process is filling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from blockexpand.errors import CorpusError
from blockexpand.records import read_record, write_record
from blockexpand.records.corpus import Shard

# D = documents of one split and source.

JOURNAL = "journal.json"
_FIELDS = 3  # of a document: first token, tokens, UTF-8 bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceState:
    """What became of one source's documents so far."""

    inputs: str
    """The digest of its files' names, lengths and times."""
    chain: str = ""
    """Hash over the content of all documents read, in order."""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: tuple[str, ...] = ()
    """Of what was dropped, the first few of each kind."""
    bad: tuple[str, ...] = ()
    """The first few records that could not be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Journal:
    """Where an unfinished `prepare` stands; saved as `journal.json`."""

    FORMAT: ClassVar[str] = "blockexpand.prepare"
    FORMAT_VERSION: ClassVar[int] = 1

    identity: str
    """Digest of the recipe, the tokenizer and the program's version: a result is of one of each."""
    source: int = 0
    """The source that is being read; as many as there are when all is read."""
    part: int = 0
    item: int = 0
    """Records of the part that are done with."""
    sources: tuple[SourceState, ...] = ()
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    """The length in bytes up to which each file counts."""
    tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    """Tokens of each split and source, as `train.0`."""
    shards: dict[str, tuple[Shard, ...]] = dataclasses.field(default_factory=dict)
    """The finished Arrow files of each split."""


class Spool:
    """The folder of an unfinished `prepare`."""

    def __init__(self, folder: Path, token_dtype: np.dtype[Any]) -> None:
        """Use the folder, which exists."""
        self.folder = folder
        self._dtype = token_dtype
        self._files: dict[str, BinaryIO] = {}

    @property
    def ready(self) -> Path:
        """The folder that becomes the output."""
        return self.folder / "ready"

    def journal(self) -> Journal | None:
        """The journal, if there is one."""
        path = self.folder / JOURNAL
        return read_record(Journal, path) if path.is_file() else None

    def rewind(self, journal: Journal) -> None:
        """Cut every file to the length that counts.

        Raises:
            CorpusError: a file is shorter than that.
        """
        for path in sorted(p for p in self.folder.iterdir() if p.is_file() and p.name not in (JOURNAL, LOCK)):
            size = journal.sizes.get(path.name, 0)
            if path.stat().st_size < size:
                raise CorpusError(
                    f"{path} has {path.stat().st_size:,} bytes, and {size:,} were written; the folder was changed: "
                    f"remove {self.folder} and prepare again"
                )
            os.truncate(path, size)

    def append(self, name: str, tokens_A: np.ndarray, num_bytes: int, trained_A: np.ndarray | None) -> None:
        """One more document of a split and source (`train.0`)."""
        stream = self._stream(f"{name}.tokens")
        first = stream.tell() // self._dtype.itemsize
        stream.write(tokens_A.astype(self._dtype).tobytes())
        self._stream(f"{name}.documents").write(np.array([first, len(tokens_A), num_bytes], dtype=np.int64).tobytes())
        if trained_A is not None:
            self._stream(f"{name}.trained").write(trained_A.tobytes())

    def _stream(self, name: str) -> BinaryIO:
        if name not in self._files:
            self._files[name] = (self.folder / name).open("ab")
        return self._files[name]

    def sizes(self) -> dict[str, int]:
        """The length of each file that this process has written to."""
        return {name: stream.tell() for name, stream in self._files.items()}

    def commit(self, journal: Journal, others: tuple[str, ...] = ()) -> None:
        """Make everything the journal speaks of durable, and then the journal."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        for name in others:
            with (self.folder / name).open("rb") as stream:
                os.fsync(stream.fileno())
        write_record(self.folder / JOURNAL, journal)

    def close(self) -> None:
        """Close the files."""
        for stream in self._files.values():
            stream.close()
        self._files = {}

    def stored(self, name: str) -> Stored:
        """What was appended under a name."""
        return Stored(self.folder / name, self._dtype)


class Stored:
    """The documents of one split and source, memory-mapped."""

    def __init__(self, stem: Path, dtype: np.dtype[Any]) -> None:
        """Map the files; none is a source that gave nothing."""
        fields = _mapped(stem.with_name(f"{stem.name}.documents"), np.dtype(np.int64))
        self.documents_D3: np.ndarray = fields.reshape(-1, _FIELDS)
        """First token, tokens, bytes of each."""
        self.tokens: np.ndarray = _mapped(stem.with_name(f"{stem.name}.tokens"), dtype)
        trained = _mapped(stem.with_name(f"{stem.name}.trained"), np.dtype(bool))
        self.trained: np.ndarray | None = trained if len(trained) else None


def _mapped(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if not path.is_file() or not path.stat().st_size:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


LOCK = "lock"


def partial_of(out: Path) -> Path:
    """Where the unfinished corpus of an output is."""
    return out.with_name(f"{out.name}.partial")


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other processes out of the folder, which is made if it is not there.

    Raises:
        CorpusError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                f"another prepare is filling {folder}; wait for it, or choose another output folder"
            ) from None
        yield


def discard(folder: Path) -> None:
    """Remove an unfinished corpus."""
    shutil.rmtree(folder, ignore_errors=True)
