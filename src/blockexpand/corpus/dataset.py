"""The packed dataset on disk: one Arrow file a split, memory-mapped, and the record beside them.

A row has T tokens. Its segments are the pieces of documents it holds, in order; what is left at its end
is padding, belongs to no segment, and is never trained. Columns: `tokens` (T unsigned integers),
`trained` (T booleans), `lengths` and `documents` (one entry a segment).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from blockexpand.corpus.packing import Piece
from blockexpand.corpus.tokens import Encoded
from blockexpand.errors import CorpusError
from blockexpand.records import read_record

# N = rows, T = tokens of a row, S = segments of a row.

_ROWS_PER_BATCH = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What one split holds; the parts sum to the wholes."""

    num_rows: int
    num_documents: int
    num_tokens: int
    """Tokens in segments, the one-token overlaps of cut documents included."""
    num_trained_tokens: int
    num_bytes: int
    """UTF-8 bytes of the documents' text: the divisor of bits per byte."""
    largest_token: int
    """The largest token id in it: the model's embeddings must reach so far."""
    fill: float
    """Share of positions that hold a token."""
    digest: str
    """Of the split's Arrow file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of one source's documents: read = kept + empty + too short + duplicates + beyond."""

    source: dict[str, str]
    """The source's settings, as the recipe has them."""
    num_read: int
    num_kept: int
    num_too_short: int
    num_duplicates: int
    num_other_splits: int
    """Documents of splits that this dataset was not asked for."""
    num_beyond_limit: int
    """Documents left over when a split had its `max_tokens`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """What went into a prepared folder; saved as its `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.corpus"
    FORMAT_VERSION: ClassVar[int] = 1

    row_tokens: int
    tokenizer_digest: str
    """Of tokenizer.json: a model trained on this must have the same."""
    vocabulary_size: int
    """One more than the largest token id that the tokenizer can give."""
    recipe_digest: str
    conversations: bool
    """Whether the documents are conversations, of which only the assistant's turns are trained."""
    sources: tuple[SourceCounts, ...]
    splits: dict[str, SplitCounts]


_SCHEMA_NAMES = ("tokens", "trained", "lengths", "documents")


def _schema(row_tokens: int, vocabulary_size: int) -> pa.Schema:
    token = pa.uint16() if vocabulary_size <= 1 << 16 else pa.uint32()
    return pa.schema(
        [
            ("tokens", pa.list_(token, row_tokens)),
            ("trained", pa.list_(pa.bool_(), row_tokens)),
            ("lengths", pa.list_(pa.int32())),
            ("documents", pa.list_(pa.int32())),
        ]
    )


def write_split(
    path: Path,
    rows: Sequence[Sequence[Piece]],
    encoded: Sequence[Encoded],
    *,
    shape: tuple[int, int],
    pad: int,
) -> int:
    """Write the rows of one split, and say how many of their tokens are trained.

    `shape` is (row tokens, vocabulary size); `pad` is the token that fills a row up.
    """
    schema = _schema(*shape)
    num_trained = 0
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        for start in range(0, len(rows), _ROWS_PER_BATCH):
            batch = _batch(rows[start : start + _ROWS_PER_BATCH], encoded, schema, pad)
            num_trained += batch.column("trained").flatten().true_count
            writer.write_batch(batch)
    return num_trained


def _batch(rows: Sequence[Sequence[Piece]], encoded: Sequence[Encoded], schema: pa.Schema, pad: int) -> pa.RecordBatch:
    list_type = schema.field("tokens").type
    row_tokens = list_type.list_size
    tokens_NT = np.full((len(rows), row_tokens), pad, dtype=list_type.value_type.to_pandas_dtype())
    trained_NT = np.zeros((len(rows), row_tokens), dtype=bool)
    for number, row in enumerate(rows):
        at = 0
        for piece in row:
            document, end = encoded[piece.document], piece.start + piece.length
            tokens_NT[number, at : at + piece.length] = document.tokens_A[piece.start : end]
            trained_NT[number, at : at + piece.length] = document.trained_A[piece.start : end]
            trained_NT[number, at] = False  # the first token of a piece has nothing before it in this row
            at += piece.length
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(tokens_NT.reshape(-1)), row_tokens),
        pa.FixedSizeListArray.from_arrays(pa.array(trained_NT.reshape(-1)), row_tokens),
        pa.array([[piece.length for piece in row] for row in rows], pa.list_(pa.int32())),
        pa.array([[piece.document for piece in row] for row in rows], pa.list_(pa.int32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class TokenRows:
    """One split, memory-mapped: rows of tokens, and which document each segment is of."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            CorpusError: it is missing or not a split that `prepare` wrote.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except FileNotFoundError:
            raise CorpusError(f"no split at {path}; see blockexpand.json beside it for the splits there are") from None
        except pa.ArrowInvalid as error:
            raise CorpusError(f"{path} is damaged: {error}; prepare the folder again") from None
        if tuple(table.column_names) != _SCHEMA_NAMES:
            raise CorpusError(f"{path} has the columns {table.column_names}; expected {', '.join(_SCHEMA_NAMES)}")
        self._table = table
        self.row_tokens: int = table.schema.field("tokens").type.list_size
        self.num_rows: int = table.num_rows

    def tokens_NT(self, indices_N: np.ndarray) -> np.ndarray:
        """The tokens of some rows, int64 [N, T]."""
        return self._rows_NT("tokens", indices_N).astype(np.int64)

    def trained_NT(self, indices_N: np.ndarray) -> np.ndarray:
        """Whether each token of some rows is trained, bool [N, T]."""
        return self._rows_NT("trained", indices_N)

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
        return self._taken("lengths", indices_N).to_pylist()

    def documents(self, indices_N: np.ndarray) -> list[list[int]]:
        """The segments' document numbers of some rows."""
        return self._taken("documents", indices_N).to_pylist()

    def _taken(self, name: str, indices_N: np.ndarray) -> pa.ChunkedArray:
        # Only these rows are copied out of the mapped file, however long it is.
        return self._table.column(name).take(pa.array(indices_N, pa.int64()))

    def _rows_NT(self, name: str, indices_N: np.ndarray) -> np.ndarray:
        values = self._taken(name, indices_N).combine_chunks().flatten()
        return values.to_numpy(zero_copy_only=False).reshape(len(indices_N), self.row_tokens)


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
        return TokenRows(self.folder / f"{split}.arrow")


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
