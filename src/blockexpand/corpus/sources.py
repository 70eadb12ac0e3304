"""The sources of a recipe: where text comes from, how often it is taken, what it is cleaned of.

In: the `sources` of a recipe. Out: settings that `reading` opens. Refused here: numbers out of bounds. A path
may be a file, a folder (read recursively) or a glob (`data/**/*.jsonl.gz`, `*.parquet`).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from blockexpand.corpus.cleaning import CleanRecipe
from blockexpand.records import WRITTEN_WHEN_SET, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Weighted:
    """What every source may say about how much of it is taken."""

    epochs: float | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """How many times its own tokens go into the weighted splits, e.g. 0.5 or 1.5; not beside `share`."""
    share: float | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Its part of the final tokens of the weighted splits, in (0, 1]."""
    clean: CleanRecipe | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Which documents are dropped for what they look like; none unless set."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "more than 0")
        check(self.share is None or 0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")
        both = self.epochs is not None and self.share is not None
        check(not both, "share", self.share, "either epochs or share, not both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSource(_Weighted):
    """Plain text files, as they are or compressed (.gz, .zst)."""

    kind: Literal["text"]
    path: str
    """A file, a folder or a glob."""
    pattern: str = "*.txt"
    """Which files of a folder."""
    separator: str = ""
    """What stands between two documents of a file; empty = the whole file is one document."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeSource(_Weighted):
    """Source trees of any language: one document a file, chosen by what the names end with."""

    kind: Literal["code"]
    path: str
    """A file, a folder or a glob; hidden folders, node_modules and __pycache__ are passed over."""
    extensions: tuple[str, ...] = (".py",)
    """What the wanted files' names end with, e.g. [.c, .h]."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        super().__post_init__()
        dotted = bool(self.extensions) and all(e.startswith(".") and len(e) > 1 for e in self.extensions)
        check(dotted, "extensions", list(self.extensions), "endings with their dot, e.g. [.py, .rs]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PythonSource(_Weighted):
    """Python source trees: one document a file, decoded as its coding cookie says."""

    kind: Literal["python"]
    path: str = "stdlib"
    """A folder, or `stdlib`: the standard library of the running interpreter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProseSource(_Weighted):
    """The English of installed packages' documentation."""

    kind: Literal["prose"]
    path: str = "site-packages"
    """A folder, or `site-packages`: the running interpreter's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class JsonSource(_Weighted):
    """Records with one text field: JSON lines, or one JSON list; as they are or compressed (.gz, .zst)."""

    kind: Literal["json"]
    path: str
    """A file, a folder or a glob."""
    field: str = "text"
    """The field of each record that holds the text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParquetSource(_Weighted):
    """Parquet files with one column of text."""

    kind: Literal["parquet"]
    path: str
    """A file, a folder or a glob."""
    field: str = "text"
    """The column that holds the text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrowSource(_Weighted):
    """Arrow files or streams (.arrow, .feather) with one column of text."""

    kind: Literal["arrow"]
    path: str
    """A file, a folder or a glob."""
    field: str = "text"
    """The column that holds the text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatSource(_Weighted):
    """Conversations in JSON, Parquet or Arrow files: [{role, content}], or ShareGPT's [{from, value}]."""

    kind: Literal["chat"]
    path: str
    """A file, a folder or a glob."""
    field: str | None = None
    """The field of each record that holds the turns; `messages` or `conversations`, which there is, if not given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceSource(_Weighted):
    """A data set of the Hugging Face hub, of its cache, or a folder that `datasets` wrote or can read.

    Needs the `datasets` library: `pip install 'blockexpand[datasets]'`.
    """

    kind: Literal["huggingface"]
    path: str
    """A hub id (`owner/name`) or a folder."""
    name: str | None = None
    """Which of the data set's configurations."""
    folder: str | None = None
    """A folder within the data set whose files are wanted, e.g. `data/python`."""
    split: str = "train"
    revision: str | None = None
    """A commit of the hub, so that the data stay what they are."""
    streaming: bool = True
    """Read rows as they arrive; false downloads the whole split into the cache first."""
    holds: Literal["text", "chat"] = "text"
    field: str | None = None
    """The column; `text`, or for chats `messages` or `conversations`, if not given."""


Source = (
    TextSource
    | CodeSource
    | PythonSource
    | ProseSource
    | JsonSource
    | ParquetSource
    | ArrowSource
    | ChatSource
    | HuggingFaceSource
)


def holds_chats(source: Source) -> bool:
    """Whether its documents are conversations."""
    return isinstance(source, ChatSource) or (isinstance(source, HuggingFaceSource) and source.holds == "chat")


def title_of(source: Source) -> str:
    """The source in a few words."""
    return f"{source.kind} {source.path}"
