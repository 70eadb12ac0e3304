"""Records of a file: JSON lines and lists, Parquet, Arrow.

In: a path, and the columns that are wanted. Out: (place, record) pairs or what is wrong with a record, each with
the share of the file read by then. A fault inside the file is given back, not raised, so that it can be counted;
after one that breaks the file the rest of it is lost, and its message says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from blockexpand.corpus.documents import Bad
from blockexpand.corpus.streams import MOST_LINE_BYTES, bare_name, decoded, lines, opened, read_bytes
from blockexpand.errors import CorpusError

JSON_NAMES = (".jsonl", ".ndjson", ".json")
PARQUET_NAMES = (".parquet",)
ARROW_NAMES = (".arrow", ".feather")

_ROWS_AT_ONCE = 256

Row = tuple[str, Any]
"""Where it stands, for people; the record."""


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Row | Bad, float]]:
    """The records of a file of any of the formats; by its name, JSON when that says nothing.

    `columns` are read, of Parquet and Arrow files, as far as they are there.
    """
    name = bare_name(path.name)
    try:
        if name.endswith(PARQUET_NAMES):
            yield from _parquet_rows(path, columns)
        elif name.endswith(ARROW_NAMES):
            yield from _arrow_rows(path, columns)
        else:
            yield from _json_rows(path)
    except (CorpusError, pa.ArrowException, OSError) as error:
        words = str(error) if isinstance(error, CorpusError) else _damaged(path, error)
        yield Bad(why=words), 1.0


def _damaged(path: Path, error: Exception) -> str:
    why = " ".join(str(error).split())[:200]
    return f"{path} is damaged or cut short: {why}; what stands behind is lost: fetch it again"


def _json_rows(path: Path) -> Iterator[tuple[Row | Bad, float]]:
    if _begins_with_a_list(path):
        yield from _json_list(path)
        return
    for number, (line, share) in enumerate(lines(path), 1):
        place = f"{path}, line {number}"
        if line is None:
            yield Bad(why=f"{place} is longer than {MOST_LINE_BYTES:,} bytes; expected one record a line"), share
        elif line.strip():
            yield _parsed(line, place), share


def _begins_with_a_list(path: Path) -> bool:
    with opened(path) as (stream, _):
        while block := stream.read(1 << 16):
            if block.lstrip(b" \t\r\n\xef\xbb\xbf"):
                return block.lstrip(b" \t\r\n\xef\xbb\xbf").startswith(b"[")
    return False


def _parsed(data: bytes, place: str) -> Row | Bad:
    try:
        return place, json.loads(decoded(data, place))
    except CorpusError as error:
        return Bad(why=str(error))
    except json.JSONDecodeError as error:
        near = error.doc[max(error.pos - 20, 0) :][:60]
        return Bad(why=f"{place} is not JSON: {error.msg} at column {error.colno}; it reads {near!r}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists without end
        return Bad(why=f"{place} is not JSON we read: {error}")


def _json_list(path: Path) -> Iterator[tuple[Row | Bad, float]]:
    found = _parsed(read_bytes(path).removeprefix(b"\xef\xbb\xbf"), str(path))
    if isinstance(found, Bad):
        yield found, 1.0
        return
    rows = found[1]
    for number, row in enumerate(rows, 1):
        yield (f"{path}, record {number}", row), number / len(rows)


def _wanted(names: list[str], columns: tuple[str, ...]) -> list[str]:
    """The columns to read; all names when none is there, so that the message can list them."""
    return [name for name in columns if name in names]


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Row | Bad, float]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = _wanted(names, columns)
        if not wanted:
            yield _no_column(path, names, columns), 1.0
            return
        number, total = 0, max(file.metadata.num_rows, 1)
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
            yield from _batch_rows(batch, path, number, total)
            number += batch.num_rows


def _arrow_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Row | Bad, float]]:
    with pa.memory_map(str(path)) as mapped:
        try:
            file = pa.ipc.open_file(mapped)
            batches, names = (file.get_batch(i) for i in range(file.num_record_batches)), file.schema.names
        except pa.ArrowInvalid:
            mapped.seek(0)
            stream = pa.ipc.open_stream(mapped)
            batches, names = iter(stream), stream.schema.names
        wanted = _wanted(names, columns)
        if not wanted:
            yield _no_column(path, names, columns), 1.0
            return
        number = 0
        for batch in batches:
            try:
                # Arrow trusts a file's offsets: one damaged byte would end the process.
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                why = " ".join(str(error).split())[:200]
                last = number + batch.num_rows
                yield Bad(why=f"{path}, rows {number + 1} to {last} are damaged: {why}; they are lost"), 0.0
                number = last
                continue
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                part = batch.select(wanted).slice(start, _ROWS_AT_ONCE)
                yield from _batch_rows(part, path, number, 0)
                number += part.num_rows


def _no_column(path: Path, names: list[str], columns: tuple[str, ...]) -> Bad:
    return Bad(
        why=f"{path} has no field {' or '.join(map(repr, columns))}; it has: {', '.join(names)}. Set 'field' to one "
        "of these"
    )


def _batch_rows(batch: pa.RecordBatch, path: Path, start: int, total: int) -> Iterator[tuple[Row | Bad, float]]:
    for number in range(batch.num_rows):
        place = f"{path}, row {start + number + 1}"
        share = (start + number + 1) / total if total else 0.0
        try:
            values = {name: batch.column(name)[number].as_py() for name in batch.schema.names}
        except UnicodeDecodeError as error:
            yield Bad(why=f"{place} is not UTF-8 text: {error.reason} at byte {error.start}"), share
            continue
        yield (place, values), share
