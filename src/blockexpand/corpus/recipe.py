"""The settings of a corpus: what goes in, what is dropped, how it is divided, mixed and cut."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from blockexpand.digests import digest_json
from blockexpand.records import WRITTEN_WHEN_SET, check, from_plain, read_yaml

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
STANDARD_LIBRARY = "stdlib"
"""The path that stands for the running Python's standard library."""

Kind = Literal["auto", "text", "code", "table", "chat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where documents come from, how often they are taken."""

    path: str
    """A file, a folder (read recursively), a glob (`data/**/*.jsonl.gz`), a data set of the hub (`owner/name`), a
    folder that `datasets` saved, or `stdlib`: the running Python's standard library."""
    kind: Kind = "auto"
    """What is in it; by the files' names and first records if not given. `text` and `code` are files that are read
    whole, `table` has a column of text, `chat` a column of turns, or a question and an answer."""
    field: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """The column of the text or of the turns; the only long one if not given."""
    endings: tuple[str, ...] = dataclasses.field(default=(), metadata=WRITTEN_WHEN_SET)
    """What the wanted files of a folder end with, e.g. [.c, .h]; those of its kind if not given."""
    separator: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """What stands between two documents of a text file. Empty = a file is one document. If not given, that is so where
    there are at least five files; of fewer ones, documents begin at blank lines."""
    configuration: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Of a data set of the hub."""
    folder: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """A folder within the data set whose files are wanted, e.g. `data/python`."""
    split: str = dataclasses.field(default="train", metadata=WRITTEN_WHEN_SET)
    """Of a data set."""
    revision: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """A commit of the hub, so that the data stay what they are."""
    epochs: float | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """How many times its own tokens go into the first split, e.g. 0.5 or 1.5; not beside `share`."""
    share: float | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Its part of the final tokens of the first split, in (0, 1]."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "more than 0")
        check(self.share is None or 0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")
        both = self.epochs is not None and self.share is not None
        check(not both, "share", self.share, "either epochs or share, not both")
        dotted = all(ending.startswith(".") and len(ending) > 1 for ending in self.endings)
        check(dotted, "endings", list(self.endings), "endings with their dot, e.g. [.py, .rs]")

    @property
    def title(self) -> str:
        """The source in a few words."""
        return self.path if self.kind == "auto" else f"{self.kind} {self.path}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRecipe:
    """One part of the corpus, apart from the others by a hash of each document."""

    share: float
    """Of all documents, in (0, 1]; the shares of all splits sum to 1."""
    max_tokens: int | None = None
    """The split's tokens are cut here; where weights hold, all sources are scaled down to it together."""
    max_document_tokens: int | None = None
    """Longer documents are cut here, so that a few long ones do not outweigh many."""
    write: bool = True
    """False keeps the split's documents out of this folder (they are another's)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")
        for name, value in (("max_tokens", self.max_tokens), ("max_document_tokens", self.max_document_tokens)):
            check(value is None or value > 0, name, value, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareRecipe:
    """What goes into a corpus and how it is cut."""

    sources: tuple[Source, ...]
    row_tokens: int = 1024
    """T, the length of a packed row; at most what the model can attend to."""
    splits: dict[str, SplitRecipe] = dataclasses.field(default_factory=lambda: {"train": SplitRecipe(share=1.0)})
    near_copies: float | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Drop a document that agrees with an earlier one, of whatever source, to this part or more (Jaccard similarity of
    runs of five words and signs, estimated by MinHash); 0.8 is usual. If not given, exact copies alone are dropped."""
    decontaminate: tuple[Source, ...] = dataclasses.field(default=(), metadata=WRITTEN_WHEN_SET)
    """Evaluation texts that must not be in the corpus, one document a question: what shares a run of 13 words with one
    of them is dropped."""
    max_bad: float = dataclasses.field(default=0.0, metadata=WRITTEN_WHEN_SET)
    """The share of a source's records that may be unreadable; they are counted and the first ones quoted. 0 stops
    at the first; a budget is looked at from the thousandth record on, and at the end of the source. A file that breaks
    off is an error, whatever this says."""
    trained_turns: Literal["assistant", "all"] = dataclasses.field(default="assistant", metadata=WRITTEN_WHEN_SET)
    """Of chats: which turns are trained. Blocks that learnt `all` also find the questions likelier, by which
    `--route auto` knows whose they are; those that learnt the answers alone need not (docs/packs.md)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(len(self.sources) > 0, "sources", self.sources, "at least one source")
        check(self.row_tokens >= 8, "row_tokens", self.row_tokens, "at least 8")
        check(0 <= self.max_bad < 1, "max_bad", self.max_bad, "a share from 0 to below 1")
        near = self.near_copies
        check(near is None or 0.3 <= near < 1, "near_copies", near, "a similarity from 0.3 to below 1")
        for name in self.splits:
            check(_SPLIT_NAME.fullmatch(name) is not None, "splits", name, "names of letters, digits, - and _")
        total = sum(split.share for split in self.splits.values())
        check(abs(total - 1) < 1e-6, "splits", total, "shares that sum to 1")
        shares = [source.share for source in self.sources if source.share is not None]
        if len(shares) == len(self.sources):
            check(abs(sum(shares) - 1) < 1e-6, "sources", sum(shares), "shares that sum to 1")
        else:
            check(sum(shares) < 1, "sources", sum(shares), "shares that leave something for the sources without one")

    def weights_hold(self, split: str) -> bool:
        """Whether the sources' weights hold in a split: in the first, since a held-out document counts once."""
        weighted = any(source.epochs is not None or source.share is not None for source in self.sources)
        return weighted and split == next(iter(self.splits))

    def identity(self) -> str:
        """The digest of what decides on the result: a limit that only stops the work is left out."""
        return digest_json(dataclasses.replace(self, max_bad=0.0))


def load_recipe(path: Path) -> PrepareRecipe:
    """The recipe of a YAML file.

    Raises:
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    return from_plain(PrepareRecipe, read_yaml(path), str(path))


def source_of(given: str | Path | Source) -> Source:
    """A source as people write it: a path, or PATH:COLUMN for a table's column."""
    if isinstance(given, Source):
        return given
    path, colon, column = str(given).rpartition(":")
    if not colon or "/" in column or os.path.exists(str(given)):
        return Source(path=str(given))
    return Source(path=path, field=column)


def make_recipe(
    sources: str | Path | Source | Sequence[str | Path | Source],
    *,
    row_tokens: int = 1024,
    held_out: float = 0.02,
    max_bad: float = 0.0,
    trained_turns: Literal["assistant", "all"] = "assistant",
) -> PrepareRecipe:
    """A recipe for sources that need no settings of their own: `train`, and two splits of `held_out` of the documents.

    Args:
        sources: Files, folders, globs or data sets of the hub, with `:COLUMN` where one has to be named; or `Source`s.
        row_tokens: T, the length of a packed row.
        held_out: The share of the documents for each of `validation` (to steer by) and `test`; 0 makes none of them.
        max_bad: The share of a source's records that may be unreadable.
        trained_turns: Of chats, which turns are trained.

    Raises:
        RecordError: a value out of bounds.
    """
    check(0 <= held_out < 0.5, "held_out", held_out, "a share from 0 to below 0.5")
    given = [sources] if isinstance(sources, str | Path | Source) else list(sources)
    shares = {"train": 1 - 2 * held_out, "validation": held_out, "test": held_out}
    return PrepareRecipe(
        sources=tuple(map(source_of, given)),
        row_tokens=row_tokens,
        splits={name: SplitRecipe(share=share) for name, share in shares.items() if share > 0},
        max_bad=max_bad,
        trained_turns=trained_turns,
    )
