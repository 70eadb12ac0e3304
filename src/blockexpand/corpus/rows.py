"""The packed dataset on disk: Arrow files of each split, memory-mapped, and the record beside them.

A row has T tokens. Its segments are the pieces of documents it holds, in order; what is left at its end
is padding, belongs to no segment, and is never trained. Columns: `tokens` (T unsigned integers),
`trained` (T booleans), `lengths` and `documents` (one entry a segment).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from blockexpand.errors import CorpusError
from blockexpand.records import read_record
from blockexpand.records.corpus import CorpusRecord

# N = rows, T = tokens of a row, S = segments of a row.

ROWS_PER_BATCH = 1024
SCHEMA_NAMES = ("tokens", "trained", "lengths", "documents")


def schema_of(row_tokens: int, vocabulary_size: int) -> pa.Schema:
    """The columns of a split's files."""
    token = pa.uint16() if vocabulary_size <= 1 << 16 else pa.uint32()
    return pa.schema(
        [
            ("tokens", pa.list_(token, row_tokens)),
            ("trained", pa.list_(pa.bool_(), row_tokens)),
            ("lengths", pa.list_(pa.int32())),
            ("documents", pa.list_(pa.int32())),
        ]
    )


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
    if tuple(file.schema.names) != SCHEMA_NAMES:
        raise CorpusError(f"{path} has the columns {file.schema.names}; expected {', '.join(SCHEMA_NAMES)}")
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
        shards = self.record.splits[split].shards
        names = [shard.name for shard in shards] or [f"{split}.arrow"]
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
