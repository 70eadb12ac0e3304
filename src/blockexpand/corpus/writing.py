"""Rows of pieces into Arrow files: written beside, renamed when whole.

In: rows, and a function that gives a piece's tokens. Out: the files of a split and what each holds. A file that an
earlier run finished is kept: the same rows would give the same bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from blockexpand.corpus.packing import Piece, packed, pieces_of
from blockexpand.corpus.rows import ROWS_PER_BATCH, schema_of
from blockexpand.corpus.tokenizer import Encoded
from blockexpand.digests import digest_file, digest_json
from blockexpand.records.corpus import Shard, SplitCounts

# N = rows, T = tokens of a row, A = tokens of a piece.

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
    """Write one Arrow file."""
    schema = schema_of(shape.row_tokens, shape.vocabulary_size)
    totals = np.zeros(4, dtype=np.int64)  # rows, tokens, trained tokens, largest token
    beside = path.with_name(f".{path.name}.partial")
    iterator = iter(rows)
    with pa.OSFile(str(beside), "wb") as stream, pa.ipc.new_file(stream, schema) as writer:
        while part := list(itertools.islice(iterator, ROWS_PER_BATCH)):
            batch, largest = _batch(part, schema, shape.pad, fetch)
            writer.write_batch(batch)
            num_tokens = sum(piece.length for row in part for piece in row)
            totals[:3] += (len(part), num_tokens, batch.column("trained").flatten().true_count)
            totals[3] = max(totals[3], largest)
    with beside.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(beside, path)
    num_rows, num_tokens, num_trained, largest = (int(x) for x in totals)
    return Shard(
        name=path.name,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_trained_tokens=num_trained,
        largest_token=largest,
        digest=digest_file(path),
    )


def _batch(rows: Sequence[Sequence[Piece]], schema: pa.Schema, pad: int, fetch: Fetch) -> tuple[pa.RecordBatch, int]:
    list_type = schema.field("tokens").type
    row_tokens = list_type.list_size
    tokens_NT = np.full((len(rows), row_tokens), pad, dtype=list_type.value_type.to_pandas_dtype())
    trained_NT = np.zeros((len(rows), row_tokens), dtype=bool)
    for number, row in enumerate(rows):
        at = 0
        for piece in row:
            tokens_A, trained_A = fetch(piece)
            end = at + piece.length
            tokens_NT[number, at:end] = tokens_A
            trained_NT[number, at:end] = True if trained_A is None else trained_A
            trained_NT[number, at] = False  # the first token of a piece has nothing before it in this row
            at = end
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(tokens_NT.reshape(-1)), row_tokens),
        pa.FixedSizeListArray.from_arrays(pa.array(trained_NT.reshape(-1)), row_tokens),
        pa.array([[piece.length for piece in row] for row in rows], pa.list_(pa.int32())),
        pa.array([[piece.document for piece in row] for row in rows], pa.list_(pa.int32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema), int(tokens_NT.max(initial=0))


def sharded(rows: Iterator[list[Piece]], rows_per_shard: int) -> Iterator[list[list[Piece]]]:
    """The rows of each file."""
    while shard := list(itertools.islice(rows, rows_per_shard)):
        yield shard


def shard_name(split: str, number: int) -> str:
    """What a file of a split is called."""
    return f"{split}-{number:05}.arrow"


def split_counts(shards: Sequence[Shard], row_tokens: int, num_documents: int, num_bytes: int) -> SplitCounts:
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
    )


def fetch_from(encoded: Sequence[Encoded]) -> Fetch:
    """Pieces of documents that are in memory."""

    def fetch(piece: Piece) -> tuple[np.ndarray, np.ndarray | None]:
        document, end = encoded[piece.document], piece.start + piece.length
        return document.tokens_A[piece.start : end], document.trained_A[piece.start : end]

    return fetch


def write_documents(path: Path, encoded: Sequence[Encoded], *, shape: Shape, num_bytes: int) -> SplitCounts:
    """Pack documents that are in memory and write them as the only file of one split."""
    pieces = (p for n, e in enumerate(encoded) for p in pieces_of(n, len(e.tokens_A), shape.row_tokens))
    shard = write_shard(path, packed(pieces, shape.row_tokens), shape, fetch_from(encoded))
    return split_counts([shard], shape.row_tokens, len(encoded), num_bytes)
