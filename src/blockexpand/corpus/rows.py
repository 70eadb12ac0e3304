"""The packed dataset on disk: Arrow files of each split, memory-mapped, and the record beside them.

A row has T tokens. Its segments are the pieces of documents it holds, in order; what is left at its end
is padding, belongs to no segment, and is never trained. Columns: `tokens` (T unsigned integers),
`trained` (T booleans), `lengths` and `documents` (one entry a segment).
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blockexpand.corpus.packing import Piece, pack, pieces_of
from blockexpand.corpus.tokenizer import Encoded
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import CorpusError
from blockexpand.records import read_record
from blockexpand.records.corpus import CorpusRecord, MixCounts, Shard, SplitCounts

# N = rows, T = tokens of a row, S = segments of a row.

_ROWS_PER_BATCH = 1024
_COLUMNS = ("tokens", "trained", "lengths", "documents")


class TokenRows:
    """One split, memory-mapped: rows of tokens, and which document each segment is of."""

    def __init__(self, *paths: Path) -> None:
        """Map the files, in order.

        Raises:
            CorpusError: one is missing or not one that `prepare` wrote.
        """
        self._batches = [batch for path in paths for batch in _mapped(path)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        schemas = {batch.schema.field("tokens").type.list_size for batch in self._batches}
        if len(schemas) != 1:
            raise CorpusError(f"{paths[0].parent} has files of rows of {sorted(schemas)} tokens; expected one length")
        self.row_tokens: int = schemas.pop()
        self.num_rows: int = int(self._starts[-1])

    def beside(self, other: TokenRows) -> TokenRows:
        """These rows and then the other's; document numbers are each one's own.

        Raises:
            CorpusError: their rows are not of one length.
        """
        if other.row_tokens != self.row_tokens:
            raise CorpusError(f"rows of {other.row_tokens} tokens beside {self.row_tokens}; expected one length")
        both = copy.copy(self)
        both._batches = [*self._batches, *other._batches]
        both._starts = np.cumsum([0, *(batch.num_rows for batch in both._batches)])
        both.num_rows = self.num_rows + other.num_rows
        return both

    def first(self, num_rows: int) -> TokenRows:
        """The same split as if it ended after `num_rows` rows; all of it, if it has no more."""
        fewer = copy.copy(self)
        fewer.num_rows = min(num_rows, self.num_rows)
        return fewer

    def tokens_NT(self, indices_N: np.ndarray) -> np.ndarray:
        """The tokens of some rows, int64 [N, T]."""
        return self._rows_NT("tokens", indices_N, np.int64)

    def trained_NT(self, indices_N: np.ndarray) -> np.ndarray:
        """Whether each token of some rows is trained, bool [N, T]."""
        return self._rows_NT("trained", indices_N, np.bool_)

    def positions_NT(self, indices_N: np.ndarray) -> np.ndarray:
        """The position of each token within its segment, int64 [N, T]; padding counts as one more segment."""
        positions_NT = np.empty((len(indices_N), self.row_tokens), dtype=np.int64)
        for number, lengths in enumerate(self.lengths(indices_N)):
            at = 0
            for length in (*lengths, self.row_tokens - sum(lengths)):
                positions_NT[number, at : at + length] = np.arange(length)
                at += length
        return positions_NT

    def lengths(self, indices_N: np.ndarray) -> list[list[int]]:
        """The segments' lengths of some rows."""
        return [self._value("lengths", index).as_py() for index in indices_N]

    def documents(self, indices_N: np.ndarray) -> list[list[int]]:
        """The segments' document numbers of some rows."""
        return [self._value("documents", index).as_py() for index in indices_N]

    def _value(self, name: str, index: int) -> Any:
        # One row of one batch: `take` on a column of many batches copies all of it first.
        batch = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._batches[batch].column(name)[int(index - self._starts[batch])]

    def _rows_NT(self, name: str, indices_N: np.ndarray, dtype: Any) -> np.ndarray:
        rows_NT = np.empty((len(indices_N), self.row_tokens), dtype=dtype)
        for number, index in enumerate(indices_N):
            rows_NT[number] = self._value(name, index).values.to_numpy(zero_copy_only=False)
        return rows_NT


def _mapped(path: Path) -> list[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    except FileNotFoundError:
        raise CorpusError(f"no split at {path}; see blockexpand.json beside it for the splits there are") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise CorpusError(f"{path} is damaged: {error}; prepare the folder again") from None
    if tuple(file.schema.names) != _COLUMNS:
        raise CorpusError(f"{path} has the columns {file.schema.names}; expected {', '.join(_COLUMNS)}")
    return batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """A prepared folder."""

    folder: Path
    record: CorpusRecord

    def rows(self, split: str) -> TokenRows:
        """The rows of one split.

        Raises:
            CorpusError: there is no such split, or it is damaged.
        """
        if split not in self.record.splits:
            known = ", ".join(self.record.splits)
            raise CorpusError(f"{self.folder} has no split {split!r}; it has: {known}")
        names = [shard.name for shard in self.record.splits[split].shards]
        for name in names:  # a record comes from elsewhere, and must not lead out of its folder
            if Path(name).name != name:
                raise CorpusError(f"the record of {self.folder} names the file {name!r}; expected a plain file name")
        return TokenRows(*(self.folder / name for name in names))


def open_corpus(folder: str | Path) -> Corpus:
    """A folder that `prepare` wrote.

    Raises:
        CorpusError: it is not one.
        RecordError: its record is damaged or of a newer version.
    """
    record = Path(folder) / "blockexpand.json"
    if not record.is_file():
        raise CorpusError(f"{folder} is not a prepared corpus: it has no blockexpand.json; make one with prepare")
    return Corpus(folder=Path(folder), record=read_record(CorpusRecord, record))


def batches(num_rows: int, size: int) -> Iterator[np.ndarray]:
    """The numbers of all rows, in order, `size` at a time."""
    for start in range(0, num_rows, size):
        yield np.arange(start, min(start + size, num_rows))


# --- writing --------------------------------------------------------------------------------------------

Fetch = Callable[[Piece], tuple[np.ndarray, np.ndarray | None]]
"""A piece's tokens and which of them are trained; None = all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Of the rows."""

    row_tokens: int
    vocabulary_size: int
    pad: int
    """The token that fills a row up."""


def write_shard(path: Path, rows: Iterable[Sequence[Piece]], shape: Shape, fetch: Fetch) -> Shard:
    """Write one Arrow file: beside its place, renamed when whole."""
    schema = _schema_of(shape)
    totals = np.zeros(4, dtype=np.int64)  # rows, tokens, trained tokens, largest token
    beside = path.with_name(f".{path.name}.partial")
    iterator = iter(rows)
    with pa.OSFile(str(beside), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        while part := list(itertools.islice(iterator, _ROWS_PER_BATCH)):
            batch, largest = _batch(part, schema, shape, fetch)
            writer.write_batch(batch)
            num_tokens = sum(piece.length for row in part for piece in row)
            totals[:3] += (len(part), num_tokens, batch.column("trained").flatten().true_count)
            totals[3] = max(totals[3], largest)
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(beside, path)
    num_rows, num_tokens, num_trained, largest = totals.tolist()
    return Shard(
        name=path.name,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_trained_tokens=num_trained,
        largest_token=largest,
        digest=digest_file(path),
    )


def _schema_of(shape: Shape) -> pa.Schema:
    token = pa.uint16() if shape.vocabulary_size <= 1 << 16 else pa.uint32()
    return pa.schema(
        [
            ("tokens", pa.list_(token, shape.row_tokens)),
            ("trained", pa.list_(pa.bool_(), shape.row_tokens)),
            ("lengths", pa.list_(pa.int32())),
            ("documents", pa.list_(pa.int32())),
        ]
    )


def _batch(
    rows: Sequence[Sequence[Piece]], schema: pa.Schema, shape: Shape, fetch: Fetch
) -> tuple[pa.RecordBatch, int]:
    tokens_NT = np.full((len(rows), shape.row_tokens), shape.pad, dtype=np.uint32)
    trained_NT = np.zeros((len(rows), shape.row_tokens), dtype=bool)
    for number, row in enumerate(rows):
        at = 0
        for piece in row:
            tokens_A, trained_A = fetch(piece)
            end = at + piece.length
            tokens_NT[number, at:end] = tokens_A
            trained_NT[number, at:end] = True if trained_A is None else trained_A
            trained_NT[number, at] = False  # the first token of a piece has nothing before it in this row
            at = end
    kind = schema.field("tokens").type.value_type
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(tokens_NT.reshape(-1), kind), shape.row_tokens),
        pa.FixedSizeListArray.from_arrays(pa.array(trained_NT.reshape(-1)), shape.row_tokens),
        pa.array([[piece.length for piece in row] for row in rows], pa.list_(pa.int32())),
        pa.array([[piece.document for piece in row] for row in rows], pa.list_(pa.int32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema), int(tokens_NT.max(initial=0))


def split_counts(
    shards: Sequence[Shard], row_tokens: int, num_documents: int, num_bytes: int, mix: tuple[MixCounts, ...] = ()
) -> SplitCounts:
    """The counts of a split whose files these are."""
    num_rows = sum(shard.num_rows for shard in shards)
    num_tokens = sum(shard.num_tokens for shard in shards)
    return SplitCounts(
        num_rows=num_rows,
        num_documents=num_documents,
        num_tokens=num_tokens,
        num_trained_tokens=sum(shard.num_trained_tokens for shard in shards),
        num_bytes=num_bytes,
        largest_token=max(shard.largest_token for shard in shards),
        fill=round(num_tokens / (num_rows * row_tokens), 6),
        digest=shards[0].digest if len(shards) == 1 else digest_json([shard.digest for shard in shards]),
        shards=tuple(shards),
        mix=mix,
    )


def write_documents(path: Path, encoded: Sequence[Encoded], *, shape: Shape, num_bytes: int) -> SplitCounts:
    """Pack documents that are in memory and write them as the only file of one split.

    Args:
        path: The Arrow file.
        encoded: The documents.
        shape: Of the rows.
        num_bytes: Of the documents' text in UTF-8.
    """

    def fetch(piece: Piece) -> tuple[np.ndarray, np.ndarray | None]:
        document, end = encoded[piece.document], piece.first + piece.length
        return document.tokens_A[piece.first : end], document.trained_A[piece.first : end]

    pieces = (p for n, e in enumerate(encoded) for p in pieces_of(n, 0, 0, len(e.tokens_A), shape.row_tokens))
    shard = write_shard(path, pack(pieces, shape.row_tokens), shape, fetch)
    return split_counts([shard], shape.row_tokens, len(encoded), num_bytes)
