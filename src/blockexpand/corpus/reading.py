"""Documents of the sources of a recipe, part by part, so that reading can go on where it stopped.

In: a source. Out: its parts (files, or one split of a data set) and the documents of each, with the share of the
part read by then. The files of a folder or glob come in the order of a hash of their names, the same everywhere,
so that the first million tokens are a fair sample of all. What is wrong with one record is given back as `Bad`.
Refused: a source that does not exist, or in which there is nothing of its kind.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from blockexpand.corpus.chats import TURN_FIELDS, messages_of
from blockexpand.corpus.documents import Bad, Document, files_in_hash_order, hash_order
from blockexpand.corpus.files import ARROW_NAMES, JSON_NAMES, PARQUET_NAMES, Row, read_rows
from blockexpand.corpus.hub import hub_rows
from blockexpand.corpus.prose import documents_of_file, may_hold_prose
from blockexpand.corpus.sources import (
    ArrowSource,
    ChatSource,
    CodeSource,
    HuggingFaceSource,
    JsonSource,
    ParquetSource,
    ProseSource,
    PythonSource,
    Source,
    TextSource,
)
from blockexpand.corpus.streams import bare_name, decoded, read_bytes
from blockexpand.digests import digest_json
from blockexpand.errors import CorpusError

_STDLIB_SKIPPED = frozenset(
    # Tests and installers are not library code; the rest are tables of data or documentation in .py files.
    {"test", "tests", "site-packages", "dist-packages", "idlelib", "ensurepip", "encodings", "pydoc_data"}
    | {"turtledemo", "lib2to3", "__pycache__", "__phello__"}
)
_NO_CODE = frozenset({"node_modules", "__pycache__"})
_NAMES = {
    "json": JSON_NAMES,
    "parquet": PARQUET_NAMES,
    "arrow": ARROW_NAMES,
    "chat": (*JSON_NAMES, *PARQUET_NAMES, *ARROW_NAMES),
}

_CHAT_COLUMNS = (*TURN_FIELDS, "instruction", "input", "output")

Item = Document | Bad


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A file, or one split of a data set."""

    path: str
    root: str
    """The folder in which the path is looked up; documents of source trees are named without it."""
    num_bytes: int

    @property
    def file(self) -> Path:
        """The whole path."""
        return Path(self.root) / self.path


def documents(source: Source) -> Iterator[Document]:
    """The documents of one source.

    Raises:
        CorpusError: the source does not exist, or a record cannot be read as its kind says.
    """
    for part in parts_of(source):
        for item, _ in read_part(source, part, 0):
            if isinstance(item, Bad):
                raise CorpusError(item.why)
            yield item


def parts_of(source: Source) -> list[Part]:
    """The parts of a source, in the order in which they are read.

    Raises:
        CorpusError: it does not exist, or holds nothing of its kind.
    """
    if isinstance(source, HuggingFaceSource):
        return [Part(path=source.path, root="", num_bytes=0)]
    root, paths = _files(source)
    if not paths:
        raise CorpusError(f"no file in {root} {_expected(source)}")
    return [Part(path=path, root=str(root), num_bytes=(root / path).stat().st_size) for path in paths]


def inputs_digest(parts: list[Part]) -> str:
    """Which files these are, by their names, lengths and times: what must not change half-way."""
    times = [p.file.stat().st_mtime_ns if p.num_bytes or p.root else 0 for p in parts]
    return digest_json([[p.path, p.num_bytes, time] for p, time in zip(parts, times, strict=True)])


def read_part(source: Source, part: Part, start: int) -> Iterator[tuple[Item, float]]:
    """The documents of a part from number `start` on, each with the share of the part read by then."""
    if isinstance(source, HuggingFaceSource):
        rows = hub_rows(source, start)
        chat, field = source.holds == "chat", source.field
        yield from ((_item(row, chat, field if chat else field or "text"), share) for row, share in rows)
        return
    for number, found in enumerate(_read_file(source, part)):
        if number >= start:
            yield found


# --- finding files --------------------------------------------------------------------------------------


def _files(source: Source) -> tuple[Path, list[str]]:
    """The folder, and the wanted files' paths within it."""
    special = {("python", "stdlib"): "stdlib", ("prose", "site-packages"): "purelib"}
    scheme = special.get((source.kind, source.path))
    root = Path(sysconfig.get_path(scheme)) if scheme else Path(source.path)
    wanted = _chooser(source, stdlib=scheme == "stdlib")
    if root.is_dir():
        return root, [path.relative_to(root).as_posix() for path in files_in_hash_order(root, wanted)]
    if isinstance(source, PythonSource | ProseSource) and root.exists():
        raise CorpusError(f"{root} is a file; expected a folder of Python sources (use kind: text for one file)")
    if root.is_file():
        return root.parent, [root.name]
    if glob.has_magic(source.path):
        return Path(), hash_order(p for p in glob.iglob(source.path, recursive=True) if Path(p).is_file())
    raise CorpusError(f"the source {source.path!r} does not exist; expected a file or folder of {source.kind}")


def _chooser(source: Source, *, stdlib: bool) -> Callable[[str], bool]:
    """Which files of a folder are wanted, by their paths within it."""
    if isinstance(source, PythonSource):
        return _is_stdlib_code if stdlib else lambda path: path.endswith(".py")
    if isinstance(source, ProseSource):
        return may_hold_prose
    if isinstance(source, TextSource):
        pattern = source.pattern
        return lambda path: any(fnmatch.fnmatch(n, pattern) for n in _names_of(path))
    if isinstance(source, CodeSource):
        extensions = source.extensions
        return lambda path: path.endswith(extensions) and not _hidden(path)
    endings = _NAMES[source.kind]
    return lambda path: bare_name(path).endswith(endings) and not _hidden(path)


def _names_of(path: str) -> tuple[str, str]:
    name = path.rpartition("/")[2]
    return name, bare_name(name)


def _hidden(path: str) -> bool:
    return any(name.startswith(".") or name in _NO_CODE for name in path.split("/"))


def _expected(source: Source) -> str:
    if isinstance(source, TextSource):
        return f"matches {source.pattern!r}; set 'pattern' to what the files are called"
    if isinstance(source, CodeSource):
        return f"ends with {', '.join(source.extensions)}; set 'extensions' to what the files end with"
    if isinstance(source, PythonSource | ProseSource):
        return f"is of the kind {source.kind}; give another folder"
    return f"ends with {', '.join(_NAMES[source.kind])}; give another path or kind"


def _is_stdlib_code(path: str) -> bool:
    generated = path.startswith(("config-", "_sysconfigdata"))  # build settings, another on every machine
    return path.endswith(".py") and not generated and _STDLIB_SKIPPED.isdisjoint(path.split("/"))


# --- reading one ------------------------------------------------------------------------------------------


def _read_file(source: Source, part: Part) -> Iterator[tuple[Item, float]]:
    if isinstance(source, PythonSource):
        yield _python_item(part), 1.0
    elif isinstance(source, ProseSource):
        yield from ((document, 1.0) for document in documents_of_file(part.file, part.path))
    elif isinstance(source, CodeSource):
        yield from _text_items(part.file, "", part.path)
    elif isinstance(source, TextSource):
        yield from _text_items(part.file, source.separator, "")
    elif isinstance(source, ChatSource):
        columns = (source.field,) if source.field else _CHAT_COLUMNS
        yield from ((_item(row, True, source.field), share) for row, share in read_rows(part.file, columns))
    else:
        assert isinstance(source, JsonSource | ParquetSource | ArrowSource), source
        yield from ((_item(row, False, source.field), share) for row, share in read_rows(part.file, (source.field,)))


def _item(row: Row | Bad, chat: bool, field: str | None) -> Item:
    if isinstance(row, Bad):
        return row
    place, values = row
    try:
        if chat:
            return _sound(_conversation(values, field, place))
        assert field is not None, "only chats find their field themselves"
        return _sound(Document(text=field_of(values, field, place, str), name=place))
    except CorpusError as error:
        return Bad(why=str(error))


def _conversation(row: Any, field: str | None, place: str) -> Document:
    messages = messages_of(row, place, field)
    return Document(text="\n".join(m["content"] for m in messages), name=place, messages=messages)


def field_of(row: Any, field: str, place: str, kind: type) -> Any:
    """The value of a field of a record, of the kind asked for.

    Raises:
        CorpusError: the record is none, or has no such field, or another kind of value in it.
    """
    if not isinstance(row, dict) or field not in row:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise CorpusError(f"{place} has no field {field!r}; it has: {keys}. Set 'field' to one of these")
    if not isinstance(row[field], kind):
        raise CorpusError(f"{place}: {field!r} is {row[field]!r:.60}; expected {kind.__name__}")
    return row[field]


def _sound(document: Document) -> Document:
    """The document, if its text can be written down: JSON's escapes can name half a character."""
    if not document.text.isascii():
        try:
            document.text.encode()
        except UnicodeEncodeError as error:
            half = document.text[error.start]
            raise CorpusError(
                f"{document.name} holds half a surrogate pair, {half!r}, at character {error.start}; expected text"
            ) from None
    return document


def _text_items(path: Path, separator: str, name: str) -> Iterator[tuple[Item, float]]:
    try:
        text = decoded(read_bytes(path), str(path))
    except CorpusError as error:
        yield Bad(why=str(error)), 1.0
        return
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    pieces = text.split(separator) if separator else [text]
    for number, piece in enumerate(pieces):
        share = (number + 1) / len(pieces)
        yield Document(text=piece if name else piece.strip("\n"), name=name or f"{path}#{number}"), share


def _python_item(part: Part) -> Item:
    try:
        with tokenize.open(part.file) as stream:
            return Document(text=stream.read(), name=part.path)
    except (SyntaxError, UnicodeDecodeError) as error:
        return Bad(why=f"{part.file} cannot be decoded: {error}; it is neither UTF-8 nor what its coding line says")


def first_record(path: Path) -> Any:
    """The first record of a file of records, or None: what its kind is guessed from."""
    for row, _ in read_rows(path, ("text", *_CHAT_COLUMNS)):
        return None if isinstance(row, Bad) else row[1]
    return None
