"""What a source holds, and its records: found by names and first records, read file by file.

In: a `Source`. Out: `Contents` (its files, whether they hold text or chats, the column), and documents, or what is
wrong with one. The files of a folder or glob come in the order of a hash of their names, the same everywhere, so that
the first million tokens are a fair sample of all. Parquet, Arrow and data sets of the hub are read through `datasets`,
streamed; JSON and CSV record by record, because `datasets` gives a whole file up for one bad record (docs/log.md).
Refused: what does not exist, what nobody can tell, several text columns of which none is chosen, what breaks off.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import glob
import hashlib
import io
import itertools
import json
import os
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any, cast

from blockexpand.corpus.chats import Message, chat_fields, messages_of
from blockexpand.corpus.recipe import STANDARD_LIBRARY, Kind, Source
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import CorpusError

_TEXT = frozenset({".txt", ".text", ".md", ".rst"})
_CODE = frozenset(
    {".c", ".h", ".cc", ".cpp", ".hpp", ".cs", ".go", ".hs", ".java", ".jl", ".js", ".jsx", ".kt", ".lua", ".m", ".ml"}
    | {".php", ".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx"}
)
_TABLES = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "tsv"} | {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
_COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
_SAVED = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `datasets` leaves in a folder that it saves (datasets 5.2)."""
_PASSED_OVER = frozenset({"node_modules", "__pycache__"})
_NO_LIBRARY = frozenset(
    # Tests and installers are not library code; the rest are tables of data or documentation in .py files.
    {"test", "tests", "site-packages", "dist-packages", "idlelib", "ensurepip", "encodings", "pydoc_data"}
    | {"turtledemo", "lib2to3", "__phello__"}
)
_SECOND_KIND = 0.2
"""A folder with so many code files for each file of text, or the reverse, is a question."""
_LOOKED_AT = 100
"""Records by which columns are known."""
_LONG_COLUMN = 3.0
"""A column whose texts are on average so many times as long as those of any other is the one with the text."""
_WHOLE_FILES = 5
"""Of fewer text files none is one document."""
_PIECES, _PIECE_CHARS = 50, 4000
"""A text cut at blank lines gives about so many documents, or more of about so many characters."""
_END_OF_TEXT = "<|endoftext|>"
"""What published text files put between documents."""
_BATCH_ROWS = 256
_WHOLLY_DIGESTED = 1 << 26
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One piece of text, or one chat, that belongs together."""

    text: str
    """The text; of a chat, its contents joined by line ends (for counting and splitting only)."""
    name: str
    """Where it came from, for people: a path, a line number."""
    num_bytes: int
    """Of the text in UTF-8."""
    messages: tuple[Message, ...] = ()
    """The turns of a chat; empty for plain text."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """A record that cannot be read: what is counted, quoted and, within `max_bad`, passed over."""

    why: str
    """One line: the place, what is there, what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A file, or one split of a data set."""

    name: str
    """By which its documents are known."""
    path: str
    form: str
    """text, code, json, csv, tsv, parquet, arrow; hub or saved for a data set."""
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a source turned out to hold."""

    source: Source
    parts: tuple[Part, ...]
    kind: str
    """text, code, table or chat."""
    columns: tuple[str, ...] = ()
    """Of the first records, where it has any."""
    field: str | None = None
    """The column that is read; None where none has a name, or each record says what makes its chat."""
    separator: str | None = ""
    """What stands between two documents of a text file; None = blank lines, empty = a file is one document."""

    @property
    def num_bytes(self) -> int:
        """Of all files, as they lie on the disk; 0 for a data set of the hub."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def told(self) -> dict[str, str]:
        """The source as it was understood, for the record."""
        between = {None: "blank lines", "": "end of file"}.get(self.separator, self.separator)
        known = {"path": self.source.path, "kind": self.kind, "columns": ", ".join(self.columns)}
        known |= {"field": self.field or "", "separator": str(between) if self.kind == "text" else ""}
        return {key: value for key, value in known.items() if value}

    def digest(self) -> str:
        """Which files these are, by their names, lengths and contents; of very long ones, both ends."""
        return digest_json([[part.name, part.num_bytes, _digest_part(part)] for part in self.parts])


def _digest_part(part: Part) -> str:
    if part.num_bytes <= _WHOLLY_DIGESTED:
        return digest_file(Path(part.path)) if part.num_bytes else ""
    with open(part.path, "rb") as stream:
        begin = stream.read(1 << 20)
        stream.seek(-(1 << 20), os.SEEK_END)
        return hashlib.blake2b(begin + stream.read()).hexdigest()


# --- what is there --------------------------------------------------------------------------------------


def look_into(source: Source) -> Contents:
    """Find a source's files and what they hold.

    Raises:
        CorpusError: it does not exist, holds nothing of its kind or several kinds, or a column has to be named.
    """
    parts = _parts_of(source)
    separator = source.separator
    texts = [part for part in parts if part.form == "text"]
    if separator is None and texts:
        with _opened(texts[0]) as (stream, _):
            marked = _END_OF_TEXT in stream.read(1 << 16)
        separator = _END_OF_TEXT if marked else None if len(texts) < _WHOLE_FILES else ""
    found = Contents(source=source, parts=tuple(parts), kind=parts[0].form, separator=separator)
    records = [part for part in parts if part.form not in ("text", "code")]
    return _look_at_records(found, records[0]) if records else found


def _parts_of(source: Source) -> list[Part]:
    root, names = _names_in(source)
    if root is None:
        saved = any((Path(source.path) / name).is_file() for name in _SAVED)
        return [Part(name=source.path, path=source.path, form="saved" if saved else "hub", num_bytes=0)]
    kinds = Counter(_kind_of(name) for name in names)
    kind = source.kind if source.kind != "auto" else _main_kind(source, kinds)
    chosen = [n for n in names if len(names) == 1 or source.endings or _is_of(kind, n)]
    if not chosen:
        raise CorpusError(f"no file of {source.path} is of the kind {kind}; give endings, another path or kind")
    parts = []
    for name in chosen:
        path = os.path.join(root, name)
        shown = name if kind == "code" else path
        parts.append(Part(name=shown, path=path, form=_form_of(kind, name), num_bytes=os.stat(path).st_size))
    return sorted(parts, key=lambda part: hashlib.blake2b(part.name.encode(), digest_size=8).digest())


def _names_in(source: Source) -> tuple[str | None, list[str]]:
    """A folder and the files within it; no folder for a data set."""
    library = source.path == STANDARD_LIBRARY and not os.path.exists(source.path)
    root = sysconfig.get_path("stdlib") if library else source.path
    endings = source.endings or ((".py",) if library else ())
    if os.path.isfile(root):
        return os.path.dirname(root), [os.path.basename(root)]
    if os.path.isdir(root):
        if any(os.path.isfile(os.path.join(root, name)) for name in _SAVED):
            return None, []
        found = (os.path.relpath(os.path.join(parent, n), root) for parent, _, names in os.walk(root) for n in names)
        names = [name for name in found if not _is_hidden(name) and (not library or _is_library(name))]
    elif glob.has_magic(root):
        root, names = "", [name for name in glob.iglob(root, recursive=True) if os.path.isfile(name)]
    elif root.count("/") == 1 and all(root.split("/")) and not root.startswith(".") and not _ending(root):
        return None, []
    else:
        raise CorpusError(f"there is no {root}; expected a file, a folder, a glob or a data set (owner/name)")
    wanted = [name for name in names if not endings or _bare(name).endswith(endings)]
    if not wanted:
        asked = f" that ends with {', '.join(endings)}" if endings else ""
        raise CorpusError(f"{source.path} holds no file{asked}; give another path, or its endings")
    return root, wanted


def _bare(name: str) -> str:
    """The name without what says how it is compressed."""
    return name[: name.rindex(".")] if name.endswith(_COMPRESSED) else name


def _ending(name: str) -> str:
    return os.path.splitext(_bare(name))[1].lower()


def _kind_of(name: str) -> str | None:
    ending = _ending(name)
    return "text" if ending in _TEXT else "code" if ending in _CODE else "table" if ending in _TABLES else None


def _main_kind(source: Source, kinds: Counter[str | None]) -> Kind:
    code, data = kinds["code"], kinds["table"] + kinds["text"]
    if not code and not data:
        raise CorpusError(
            f"cannot tell what {source.path} holds; expected files of text or code, tables or chats; name them, e.g. "
            f"{source.path}/*.txt, or give `prepare` their --kind"
        )
    if min(code, data) > _SECOND_KIND * max(code, data):
        raise CorpusError(
            f"{source.path} holds files of several kinds ({code} of code, {kinds['table']} tables, {kinds['text']} of "
            f"text); expected one kind; name the files, e.g. {source.path}/**/*.py, or give `prepare` a --kind"
        )
    return "code" if code > data else "table" if kinds["table"] else "text"


def _is_of(kind: Kind, name: str) -> bool:
    """Whether a file of a folder is wanted; text beside tables is, but for pages about them."""
    found = _kind_of(name)
    if kind == "table" and found == "text":
        return not os.path.basename(name).upper().startswith(("README", "LICENSE", "CHANGELOG"))
    return found == ("table" if kind == "chat" else kind)


def _form_of(kind: Kind, name: str) -> str:
    if kind in ("text", "code"):
        return kind
    return "text" if _kind_of(name) == "text" and kind != "chat" else _TABLES.get(_ending(name), "json")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _PASSED_OVER for part in name.split(os.sep))


def _is_library(name: str) -> bool:
    generated = name.startswith(("config-", "_sysconfigdata"))  # build settings, another on every machine
    return not generated and _NO_LIBRARY.isdisjoint(name.split(os.sep))


def _look_at_records(contents: Contents, first: Part) -> Contents:
    source = contents.source
    rows = [row for _, row in itertools.islice(_rows(source, first, 0, None), _LOOKED_AT) if not isinstance(row, Bad)]
    named = [row for row in rows if isinstance(row, dict)]
    columns = tuple(dict.fromkeys(str(name) for row in named for name in row))
    texts = {name: [row[name] for row in named if isinstance(row.get(name), str)] for name in columns}
    fields = chat_fields([name for name in columns if any(row.get(name) is not None for row in named)])
    lists = source.field is not None and any(isinstance(row.get(source.field), list) for row in named)
    if source.kind == "chat" or (source.kind == "auto" and (lists or (fields and not texts.get("text")))):
        return dataclasses.replace(contents, kind="chat", columns=columns, field=source.field)
    field = _text_column(source, first, texts) if named else None
    return dataclasses.replace(contents, kind="table", columns=columns, field=field)


def _text_column(source: Source, part: Part, texts: dict[str, list[str]]) -> str:
    if source.field is not None:
        if source.field not in texts:
            raise CorpusError(
                f"{part.path} has no column {source.field!r}; it has: {', '.join(texts)}. Name one of these"
            )
        return source.field
    if texts.get("text"):
        return "text"
    means = {name: sum(map(len, found)) / len(found) for name, found in texts.items() if found}
    longest = sorted(means, key=lambda name: -means[name])
    if longest and (len(longest) == 1 or means[longest[0]] >= _LONG_COLUMN * means[longest[1]]):
        return longest[0]
    shown = ", ".join(f"{name} ({means[name]:.0f} characters)" if name in means else name for name in texts)
    raise CorpusError(
        f"{part.path} has several columns and none called text: {shown}; expected one to be named: write "
        f"{source.path}:{longest[0] if longest else 'COLUMN'}"
    )


# --- documents ------------------------------------------------------------------------------------------


def read_documents(contents: Contents, part: Part, start: int = 0) -> Iterator[tuple[Document | Bad, float]]:
    """The documents of a part from number `start` on, each with the share of the part read by then.

    Raises:
        CorpusError: the file breaks off: it is damaged, cut short, or the network failed.
    """
    if part.form in ("text", "code"):
        yield from itertools.islice(_text_documents(contents, part), start, None)
        return
    shares = [0.0]
    for place, row in _rows(contents.source, part, start, contents, shares):
        yield (row if isinstance(row, Bad) else _document_of(contents, row, place)), shares[0]


def all_documents(source: Source) -> Iterator[Document]:
    """Every document of a source.

    Raises:
        CorpusError: as `look_into` and `read_documents`, or a record cannot be read.
    """
    contents = look_into(source)
    for part in contents.parts:
        for document, _ in read_documents(contents, part):
            if isinstance(document, Bad):
                raise CorpusError(document.why)
            yield document


def _document_of(contents: Contents, row: Any, place: str) -> Document | Bad:
    if contents.kind == "chat":
        try:
            messages = messages_of(row, place, contents.field)
        except CorpusError as error:
            return Bad(why=str(error))
        return _checked("\n".join(message["content"] for message in messages), place, messages)
    text = row.get(contents.field) if isinstance(row, dict) else row
    if not isinstance(text, str):
        there = f"it has: {', '.join(map(str, row))}" if isinstance(row, dict) else "expected text"
        return Bad(why=f"{place} has {text!r:.60} as its {contents.field!r}; {there}")
    return _checked(text, place)


def _checked(text: str, name: str, messages: tuple[Message, ...] = ()) -> Document | Bad:
    """The document, if its text can be written down: bytes that are no UTF-8 and halves of characters cannot."""
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            what = f"is not UTF-8 text: byte 0x{code - 0xDC00:02x} at character {error.start}"
            return Bad(why=f"{name} {what}; convert it first, e.g. iconv -f windows-1252 -t utf-8")
        return Bad(why=f"{name} holds half a character, U+{code:04X}, at character {error.start}; expected text")
    return Document(text=text, name=name, num_bytes=num_bytes, messages=messages)


def _text_documents(contents: Contents, part: Part) -> Iterator[tuple[Document | Bad, float]]:
    least = min(_PIECE_CHARS, contents.num_bytes // _PIECES)
    with _opened(part) as (stream, raw):
        if part.form == "code" or contents.separator == "":
            yield _checked(stream.read(), part.name), 1.0
            return
        pieces = _between(stream, contents.separator) if contents.separator else _at_blank_lines(stream, least)
        for number, piece in enumerate(pieces, 1):
            if piece.strip():
                yield _checked(piece.strip("\n"), f"{part.name}#{number}"), raw.tell() / max(part.num_bytes, 1)


def _between(stream: IO[str], separator: str) -> Iterator[str]:
    rest = ""
    while block := stream.read(1 << 20):
        *pieces, rest = (rest + block).split(separator)
        yield from pieces
    yield rest


def _at_blank_lines(stream: IO[str], least_chars: int) -> Iterator[str]:
    lines: list[str] = []
    num_chars = 0
    for line in stream:
        if not line.strip() and num_chars >= least_chars and lines:
            yield "".join(lines)
            lines, num_chars = [], 0
        elif line.strip() or lines:
            lines.append(line)
            num_chars += len(line)
    yield "".join(lines)


# --- bytes and rows -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(part: Part) -> Generator[tuple[io.TextIOWrapper, IO[bytes]]]:
    """A file's text, decompressed and decoded as its first bytes say, and its raw stream, which tells how far it is."""
    from fsspec.compression import compr

    _let_arrow_read_zstd()
    forms = dict(zip(_COMPRESSED, ("gzip", "zstd", "xz", "bz2"), strict=True))
    decompress = compr[forms[os.path.splitext(part.path)[1]]] if part.path.endswith(_COMPRESSED) else None
    try:
        with open(part.path, "rb") as raw:
            stream = io.BufferedReader(decompress(raw, mode="rb"), 1 << 20) if decompress else raw
            encoding = _encoding_of(cast(io.BufferedReader, stream), part)
            errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
            yield io.TextIOWrapper(cast(IO[bytes], stream), encoding=encoding, errors=errors), raw
    except CorpusError:
        raise
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{part.path} is not {error.encoding} text, as it begins: {error.reason}; convert it"
        ) from None
    except Exception as error:  # every compression has errors of its own
        raise _broken(part.path, error) from None


def _let_arrow_read_zstd() -> None:
    """Of the readers there are, Arrow's alone notices a file that is cut short, and reads one of several frames."""
    import pyarrow as pa
    from fsspec.compression import register_compression

    def open_zstd(raw: Any, **_: Any) -> Any:
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 20)

    register_compression("zstd", open_zstd, ["zst"], force=True)


def _encoding_of(stream: io.BufferedReader, part: Part) -> str:
    head = stream.peek(1 << 10)[: 1 << 10]
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):  # without a mark: every other byte of Latin is 0
        if head[first::2].count(0) > len(head) // 4 > head[1 - first :: 2].count(0):
            return encoding
    if part.form == "code" and _ending(part.path) == ".py":
        try:
            return tokenize.detect_encoding(io.BytesIO(head).readline)[0]
        except SyntaxError:
            return "utf-8"
    return "utf-8"


def _broken(path: str, error: Exception) -> CorpusError:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return CorpusError(
        f"{path} cannot be read whole: {why}; expected a file that is not damaged or cut short: fetch it again"
    )


def _rows(
    source: Source, part: Part, start: int, contents: Contents | None, shares: list[float] | None = None
) -> Iterator[tuple[str, Any]]:
    """(place, record or Bad) of a part; `shares[0]` follows how much of it was read."""
    shares = shares if shares is not None else [0.0]
    if part.form == "json":
        yield from _json_rows(part, start, shares)
        return
    if part.form in ("csv", "tsv"):
        yield from _csv_rows(part, start, shares)
        return
    number = start
    try:
        table, num_rows = _table(source, part, contents)
        for batch in table.skip(start).with_format("arrow").iter(_BATCH_ROWS):
            batch.validate(full=True)  # Arrow trusts a file's offsets: one damaged byte would end the process
            for row in batch.to_pylist():
                number += 1
                shares[0] = number / num_rows if num_rows else 0.0
                yield f"{part.path}, row {number}", row
    except CorpusError:
        raise
    except Exception as error:  # Arrow, pandas and the network have errors of their own
        raise _broken(f"{part.path} (after row {number:,})", error) from None


def file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, record or Bad) of one file of JSON, CSV, TSV, Parquet or Arrow.

    Raises:
        CorpusError: as `read_documents`.
    """
    part = Part(name=path.name, path=str(path), form=_TABLES[_ending(path.name)], num_bytes=path.stat().st_size)
    return _rows(Source(path=str(path), kind="table"), part, 0, None)


def _json_rows(part: Part, start: int, shares: list[float]) -> Iterator[tuple[str, Any]]:
    with _opened(part) as (stream, raw):
        head = cast(io.BufferedReader, stream.buffer).peek(1 << 10).decode(stream.encoding, "ignore")
        if head.lstrip("\ufeff \t\r\n").startswith("["):
            rows, shares[0] = _parsed(stream.read(), part.path), 1.0
            yield from (
                ((f"{part.path}, record {n}", row) for n, row in enumerate(rows[start:], start + 1))
                if isinstance(rows, list)
                else [(part.path, rows)]
            )
            return
        for number, line in enumerate(stream, 1):
            if number > start and (line := line.strip()):
                shares[0] = raw.tell() / max(part.num_bytes, 1)
                place = f"{part.path}, line {number}"
                yield place, _parsed(line, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        near = text[max(error.pos - 20, 0) :][:60]
        return Bad(why=f"{place} is not JSON: {error.msg} at column {error.colno}; it reads {near!r}")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists without end
        return Bad(why=f"{place} is not JSON we read: {error}")


def _csv_rows(part: Part, start: int, shares: list[float]) -> Iterator[tuple[str, Any]]:
    """Every value as text, whatever the first rows look like."""
    csv.field_size_limit(1 << 30)
    with _opened(part) as (stream, raw):
        rows = csv.DictReader(stream, delimiter="\t" if part.form == "tsv" else ",", strict=True)
        for number, row in enumerate(rows, 1):
            if number > start:
                shares[0] = raw.tell() / max(part.num_bytes, 1)
                place = f"{part.path}, row {number}"
                more = row.get(None)
                yield place, Bad(why=f"{place} has more values than there are columns: {more!r:.60}") if more else row


def _table(source: Source, part: Part, contents: Contents | None) -> tuple[Any, int | None]:
    """The rows of a table, streamed, as `datasets` has them, and their number where it is known beforehand."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    if part.form == "saved":
        found = datasets.load_from_disk(part.path)
        if isinstance(found, dict) and source.split not in found:
            raise CorpusError(f"{part.path} has the splits {', '.join(found)}; expected {source.split!r} among them")
        rows = cast(Any, found[source.split] if isinstance(found, dict) else found)
        return rows.to_iterable_dataset(), rows.num_rows
    if part.form == "hub":
        return _hub_table(source)
    more: dict[str, Any] = {}
    num_rows = None
    if part.form == "parquet":
        num_rows = pq.read_metadata(part.path).num_rows
        more = {"columns": [contents.field]} if contents is not None and contents.field else {}
    elif not part.path.endswith(_COMPRESSED):
        with contextlib.suppress(pa.ArrowInvalid), pa.memory_map(part.path) as file:  # of a stream nobody knows
            reader = pa.ipc.open_file(file)
            num_rows = sum(reader.get_batch(index).num_rows for index in range(reader.num_record_batches))
    _let_arrow_read_zstd()
    return datasets.load_dataset(part.form, data_files=part.path, split="train", streaming=True, **more), num_rows


def _hub_table(source: Source) -> tuple[Any, int | None]:
    import datasets
    from datasets.config import HF_HUB_OFFLINE

    asked: dict[str, Any] = {"data_dir": source.folder, "split": source.split, "revision": source.revision}
    streaming = not HF_HUB_OFFLINE  # what is in the cache is a table already
    try:
        found = datasets.load_dataset(source.path, source.configuration, streaming=streaming, **asked)
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise CorpusError(
            f"there is no file or folder {source.path}, and the data set of that name (configuration "
            f"{source.configuration}, split {source.split!r}) cannot be opened: {why}"
        ) from None
    if not streaming:
        return found.to_iterable_dataset(), found.num_rows
    splits = found.info.splits or {}
    return found, splits[source.split].num_examples if source.split in splits else None
