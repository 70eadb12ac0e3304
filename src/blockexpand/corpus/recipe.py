"""The settings of a corpus: what goes in, how it is divided and cut."""

from __future__ import annotations

import dataclasses

from blockexpand.corpus.sources import Source
from blockexpand.records import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRecipe:
    """One part of the corpus, apart from the others by a hash of each document."""

    share: float
    """Of all documents, in (0, 1]; the shares of all splits sum to 1."""
    max_tokens: int | None = None
    """Take no more documents once the split holds this many tokens."""
    max_document_chars: int | None = None
    """Cut longer documents here, so that a few long ones do not outweigh many; conversations are not cut."""
    write: bool = True
    """False keeps the split's documents out of this folder (they are another's)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")
        for name in ("max_tokens", "max_document_chars"):
            value = vars(self)[name]
            check(value is None or value > 0, name, value, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareRecipe:
    """What goes into a corpus and how it is cut."""

    sources: tuple[Source, ...]
    row_tokens: int = 1024
    """T, the length of a packed row; at most what the model can attend to."""
    splits: dict[str, SplitRecipe] = dataclasses.field(default_factory=lambda: {"train": SplitRecipe(share=1.0)})
    min_chars: int = 1
    """Shorter documents are dropped and counted."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(len(self.sources) > 0, "sources", self.sources, "at least one source")
        check(self.row_tokens >= 8, "row_tokens", self.row_tokens, "at least 8")
        check(self.min_chars >= 1, "min_chars", self.min_chars, "at least 1")
        total = sum(split.share for split in self.splits.values())
        check(abs(total - 1) < 1e-6, "splits", total, "shares that sum to 1")
        chats = {source.kind == "chat" for source in self.sources}
        cut = any(split.max_document_chars is not None for split in self.splits.values())
        check(not (cut and True in chats), "max_document_chars", "set", "unset for conversations")
        check(len(chats) == 1, "sources", sorted(s.kind for s in self.sources), "all chats or no chats")
