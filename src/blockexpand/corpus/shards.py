"""The unfinished corpus on disk: shards of encoded documents, each whole or not there.

In: documents as tokens, in the order of their source. Out: `<out>.partial` beside the output, with a few files for each
shard, the record of what was read last of all; so a killed run goes on behind its last shard. Refused: a folder that
another process is filling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from blockexpand.corpus.packing import Piece
from blockexpand.corpus.tokenizer import Encoded
from blockexpand.errors import CorpusError
from blockexpand.records import read_record, write_record

# D = documents, A = tokens of them all.

_QUOTED = 5
"""So many examples of each kind are written down."""
_DOCUMENT = np.dtype([("length", "i8"), ("num_bytes", "i8"), ("position", "f8"), ("key", "u8")])


@dataclasses.dataclass(kw_only=True)
class SourceState:
    """What became of one source's records so far; with a shard, its record, saved as `<shard>.json`."""

    FORMAT: ClassVar[str] = "blockexpand.prepare"
    FORMAT_VERSION: ClassVar[int] = 1

    part: int = 0
    item: int = 0
    """Records of the part that are done with."""
    is_done: bool = False
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """By the names of `SourceCounts`."""
    examples: tuple[str, ...] = ()
    """Of what was dropped, the first few of each kind."""
    bad: tuple[str, ...] = ()
    """The first few records that could not be read."""

    def count(self, what: str, example: str = "") -> None:
        """One more of a kind, quoted while there are few."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if example and self.counts[what] <= _QUOTED:
            self.examples += (example,)

    def count_bad(self, why: str) -> None:
        """One more record that cannot be read."""
        self.count("num_bad")
        if len(self.bad) < _QUOTED:
            self.bad += (why,)


class ShardWriter:
    """The documents of one shard, in memory until they are written."""

    def __init__(self) -> None:
        """Begin empty."""
        self.num_tokens = 0
        self._documents: list[tuple[int, int, float, int]] = []
        self._tokens: list[np.ndarray] = []
        self._trained: list[np.ndarray] = []
        self._signatures: list[np.ndarray] = []

    def add(
        self, encoded: Encoded, *, num_bytes: int, position: float, key: int, signature: np.ndarray | None, plain: bool
    ) -> None:
        """One more document; of a `plain` one every token but the first is trained, which is not written down."""
        self._documents.append((len(encoded.tokens_A), num_bytes, position, key))
        self._tokens.append(encoded.tokens_A.astype(np.uint32))
        self.num_tokens += len(encoded.tokens_A)
        if not plain:
            self._trained.append(encoded.trained_A)
        if signature is not None:
            self._signatures.append(signature)

    def write(self, stem: Path, state: SourceState) -> None:
        """Write the shard, its record last."""
        empty = np.zeros(0, dtype=np.uint32)
        np.save(f"{stem}.tokens.npy", np.concatenate([empty, *self._tokens]))
        np.save(f"{stem}.documents.npy", np.array(self._documents, dtype=_DOCUMENT))
        if self._trained:
            np.save(f"{stem}.trained.npy", np.concatenate(self._trained))
        if self._signatures:
            np.save(f"{stem}.signatures.npy", np.stack(self._signatures))
        write_record(Path(f"{stem}.json"), state)


class Shards:
    """The finished shards of one source."""

    def __init__(self, folder: Path, source: int) -> None:
        """Find them."""
        self._stem = folder / f"source-{source:03}"
        self.stems: list[Path] = []
        while Path(f"{self.next_stem}.json").is_file():
            self.stems.append(self.next_stem)

    @property
    def next_stem(self) -> Path:
        """The name of the next one."""
        return self._stem.with_name(f"{self._stem.name}-{len(self.stems):05}")

    @property
    def state(self) -> SourceState:
        """Where reading stands behind the last one."""
        return read_record(SourceState, Path(f"{self.stems[-1]}.json")) if self.stems else SourceState()

    def documents(self) -> np.ndarray:
        """Length, bytes, position and key of every document, [D]; one that could not be encoded has no length."""
        found = [np.load(f"{stem}.documents.npy") for stem in self.stems]
        return np.concatenate([np.zeros(0, dtype=_DOCUMENT), *found])

    def signatures(self) -> list[np.ndarray]:
        """What near copies are known by, where they are looked for, of every document."""
        paths = [Path(f"{stem}.signatures.npy") for stem in self.stems]
        return [row for path in paths if path.is_file() for row in np.load(path)]


class StoredTokens:
    """The tokens of all shards of a source, memory-mapped."""

    def __init__(self, stems: Sequence[Path]) -> None:
        """Map the files."""
        self._tokens = [np.load(f"{stem}.tokens.npy", mmap_mode="r") for stem in stems]
        trained = [Path(f"{stem}.trained.npy") for stem in stems]
        self._trained = [np.load(path, mmap_mode="r") if path.is_file() else None for path in trained]
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self._tokens)])

    def read(self, piece: Piece) -> tuple[np.ndarray, np.ndarray | None]:
        """A piece's tokens, and which of them are trained; None = all."""
        shard = int(np.searchsorted(self._starts, piece.first, side="right")) - 1
        begin = piece.first - int(self._starts[shard])
        trained = self._trained[shard]
        part = slice(begin, begin + piece.length)
        return self._tokens[shard][part], None if trained is None else trained[part]


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other processes out of the folder, which is made if it is not there.

    Raises:
        CorpusError: another process is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(
                f"another prepare is filling {folder}; wait for it, or choose another output folder"
            ) from None
        yield
