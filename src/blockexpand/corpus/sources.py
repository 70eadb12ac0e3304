"""Where text comes from: the source settings of a recipe, and the reader of each kind.

In: files and folders on this machine. Out: documents; the files of a folder come in the order of a hash
of their names, the same everywhere, so that the first million tokens are a fair sample of all. Refused:
what does not exist, what is not UTF-8, a line that is not JSON, a record without the field asked for;
each with its file and line.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from blockexpand.corpus.documents import Document, Message, files_in_hash_order
from blockexpand.corpus.prose import prose_documents
from blockexpand.errors import CorpusError

_ROLES = ("system", "user", "assistant")
_STDLIB_SKIPPED = frozenset(
    # Tests and installers are not library code; the rest are tables of data or documentation in .py files.
    {"test", "tests", "site-packages", "dist-packages", "idlelib", "ensurepip", "encodings", "pydoc_data"}
    | {"turtledemo", "lib2to3", "__pycache__", "__phello__"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource:
    """Plain text files."""

    kind: Literal["text"]
    path: str
    """A file, or a folder read recursively."""
    pattern: str = "*.txt"
    """Which files of a folder."""
    separator: str = ""
    """What stands between two documents of a file; empty = the whole file is one document."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonSource:
    """Python source trees: one document a file, decoded as its coding cookie says."""

    kind: Literal["python"]
    path: str = "stdlib"
    """A folder, or `stdlib`: the standard library of the running interpreter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProseSource:
    """The English of installed packages' documentation."""

    kind: Literal["prose"]
    path: str = "site-packages"
    """A folder, or `site-packages`: the running interpreter's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSource:
    """Records with one text field: JSON lines, or one JSON list."""

    kind: Literal["json"]
    path: str
    field: str = "text"
    """The field of each record that holds the text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSource:
    """Conversations: JSON lines whose `messages` are a list of {role, content}."""

    kind: Literal["chat"]
    path: str
    field: str = "messages"
    """The field of each record that holds the turns."""


Source = TextSource | PythonSource | ProseSource | JsonSource | ChatSource


def documents(source: Source) -> Iterator[Document]:
    """The documents of one source.

    Raises:
        CorpusError: the source does not exist or cannot be read as its kind says.
    """
    root = _root(source)
    if isinstance(source, TextSource):
        return _text_documents(source, root)
    if isinstance(source, PythonSource):
        return _python_documents(root, stdlib=source.path == "stdlib")
    if isinstance(source, ProseSource):
        return prose_documents(root)
    if isinstance(source, JsonSource):
        return _json_documents(source, root)
    return _chat_documents(source, root)


def _root(source: Source) -> Path:
    special = {("python", "stdlib"): "stdlib", ("prose", "site-packages"): "purelib"}
    scheme = special.get((source.kind, source.path))
    root = Path(sysconfig.get_path(scheme)) if scheme else Path(source.path)
    if not root.exists():
        raise CorpusError(f"the source {source.path!r} does not exist; expected a file or folder of {source.kind}")
    return root


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; convert it first, e.g. iconv -f latin1 "
            "-t utf-8"
        ) from None
    except OSError as error:
        raise CorpusError(f"cannot read {path}: {error.strerror}") from None


def _text_documents(source: TextSource, root: Path) -> Iterator[Document]:
    paths = [root] if root.is_file() else files_in_hash_order(root, lambda p: _matches(p, source.pattern))
    if not paths:
        raise CorpusError(f"no file in {root} matches {source.pattern!r}; set 'pattern' to what the files are called")
    for path in paths:
        text = _read_utf8(path)
        pieces = text.split(source.separator) if source.separator else [text]
        for number, piece in enumerate(pieces):
            yield Document(text=piece.strip("\n"), name=f"{path}#{number}")


def _python_documents(root: Path, *, stdlib: bool) -> Iterator[Document]:
    if root.is_file():
        raise CorpusError(f"{root} is a file; expected a folder of Python sources (use kind: text for one file)")
    for path in files_in_hash_order(root, _is_stdlib_code if stdlib else _is_python):
        try:
            with tokenize.open(path) as stream:
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError) as error:
            raise CorpusError(
                f"{path} cannot be decoded: {error}; it is neither UTF-8 nor what its coding line says"
            ) from None
        yield Document(text=text, name=path.relative_to(root).as_posix())


def _matches(path: str, pattern: str) -> bool:
    return fnmatch.fnmatch(path.rpartition("/")[2], pattern)


def _is_python(path: str) -> bool:
    return path.endswith(".py")


def _is_stdlib_code(path: str) -> bool:
    generated = path.startswith(("config-", "_sysconfigdata"))  # build settings, another on every machine
    return _is_python(path) and not generated and _STDLIB_SKIPPED.isdisjoint(path.split("/"))


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _read_utf8(path)
    try:
        if text.lstrip().startswith("["):
            for number, row in enumerate(json.loads(text)):
                yield f"{path}, record {number + 1}", row
            return
        for number, line in enumerate(text.splitlines()):
            if line.strip():
                yield f"{path}, line {number + 1}", json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{path} is not JSON or JSON lines: {error.msg} at line {error.lineno}; it reads "
            f"{error.doc[error.pos :][:40]!r}"
        ) from None


def _field(row: Any, field: str, place: str, kind: type) -> Any:
    if not isinstance(row, dict) or field not in row:
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise CorpusError(f"{place} has no field {field!r}; it has: {keys}. Set 'field' to one of these")
    if not isinstance(row[field], kind):
        raise CorpusError(f"{place}: {field!r} is {row[field]!r:.60}; expected {kind.__name__}")
    return row[field]


def _json_documents(source: JsonSource, path: Path) -> Iterator[Document]:
    for place, row in _json_rows(path):
        yield Document(text=_field(row, source.field, place, str), name=place)


def _chat_documents(source: ChatSource, path: Path) -> Iterator[Document]:
    for place, row in _json_rows(path):
        messages = tuple(
            Message(role=_field(turn, "role", place, str), content=_field(turn, "content", place, str))
            for turn in _field(row, source.field, place, list)
        )
        for message in messages:
            if message.role not in _ROLES:
                raise CorpusError(f"{place}: unknown role {message.role!r}; expected one of {', '.join(_ROLES)}")
        if not any(message.role == "assistant" for message in messages):
            raise CorpusError(f"{place} has no assistant turn, so nothing in it could be trained; remove it")
        yield Document(text="\n".join(m.content for m in messages), name=place, messages=messages)
