"""The settings of a corpus: what goes in, what is dropped, how it is divided, mixed and cut."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

from blockexpand.corpus.sources import Source, holds_chats
from blockexpand.digests import digest_json
from blockexpand.records import WRITTEN_WHEN_SET, check

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRecipe:
    """One part of the corpus, apart from the others by a hash of each document."""

    share: float
    """Of all documents, in (0, 1]; the shares of all splits sum to 1."""
    max_tokens: int | None = None
    """Take no more documents once the split holds this many tokens; where weights hold, all sources are scaled down
    to it together."""
    max_document_chars: int | None = None
    """Cut longer documents here, so that a few long ones do not outweigh many; conversations are not cut."""
    write: bool = True
    """False keeps the split's documents out of this folder (they are another's)."""
    weighted: bool | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Whether the sources' weights hold here; of several splits the first only, if not given: a held-out document
    counts once."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(0 < self.share <= 1, "share", self.share, "a number above 0 and at most 1")
        for name in ("max_tokens", "max_document_chars"):
            value = vars(self)[name]
            check(value is None or value > 0, name, value, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DuplicatesRecipe:
    """Which documents count as copies of an earlier one, whatever source it came from."""

    near: float | None = None
    """Drop a document whose words agree with an earlier one's to this part or more (Jaccard similarity of runs of
    `run_words` words, estimated by MinHash); null keeps near copies. 0.8 is usual."""
    run_words: int = 5
    """As Penedo et al. 2024 (FineWeb, arXiv 2406.17557, section 3.4)."""
    memory_mb: int = 1024
    """The most that the table of documents seen may take: 100 million documents for exact copies alone, 7 million
    with near ones, at 1024. When it is full, prepare stops, and goes on with a higher limit and --resume."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.near is None or 0.3 <= self.near <= 1, "near", self.near, "a similarity from 0.3 to 1")
        check(1 <= self.run_words <= 20, "run_words", self.run_words, "1 to 20")
        check(self.memory_mb > 0, "memory_mb", self.memory_mb, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecontaminateRecipe:
    """Evaluation texts that must not be in the corpus."""

    against: tuple[Source, ...]
    """Where they are: sources like any other, one document a question."""
    gram_words: int = 13
    """A document that shares a run of this many words with one of them is dropped (Brown et al. 2020, GPT-3,
    arXiv 2005.14165, appendix C). A shorter text counts as a run of its own length."""
    least_words: int = 8
    """Texts shorter than this say nothing, and are counted as skipped (the same appendix)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(len(self.against) > 0, "against", self.against, "at least one source")
        check(self.gram_words >= 2, "gram_words", self.gram_words, "at least 2")
        fits = 1 <= self.least_words <= self.gram_words
        check(fits, "least_words", self.least_words, f"1 to gram_words ({self.gram_words})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareRecipe:
    """What goes into a corpus and how it is cut."""

    sources: tuple[Source, ...]
    row_tokens: int = 1024
    """T, the length of a packed row; at most what the model can attend to."""
    splits: dict[str, SplitRecipe] = dataclasses.field(default_factory=lambda: {"train": SplitRecipe(share=1.0)})
    min_chars: int = 1
    """Shorter documents are dropped and counted."""
    split_by: Literal["shingle", "content"] = dataclasses.field(default="shingle", metadata=WRITTEN_WHEN_SET)
    """What of a document is hashed for its split: `shingle`, its smallest run of five words, so that near copies
    mostly fall together; `content`, all of it, forty times as fast: with near copies dropped, or one split, it is
    as good."""
    duplicates: DuplicatesRecipe = dataclasses.field(default=DuplicatesRecipe(), metadata=WRITTEN_WHEN_SET)
    decontaminate: DecontaminateRecipe | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    max_bad: float = dataclasses.field(default=0.0, metadata=WRITTEN_WHEN_SET)
    """The share of a source's records that may be unreadable; they are counted and the first ones quoted. 0 stops
    at the first; a budget is looked at from the thousandth record on, and at the end of the source."""
    max_epochs: float = dataclasses.field(default=4.0, metadata=WRITTEN_WHEN_SET)
    """How often shares may have a source repeated: up to four epochs are nearly as good as new text (Muennighoff
    et al. 2023, arXiv 2305.16264)."""
    shard_tokens: int = dataclasses.field(default=1 << 26, metadata=WRITTEN_WHEN_SET)
    """How many tokens one Arrow file holds at most; 67 million are about 140 MB."""

    trained_turns: Literal["assistant", "all"] = dataclasses.field(default="assistant", metadata=WRITTEN_WHEN_SET)
    """Of conversations: which turns are trained. Blocks that learnt `all` also find the questions likelier, by which
    `--route auto` knows whose they are; those that learnt the answers alone need not (docs/packs.md)."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(len(self.sources) > 0, "sources", self.sources, "at least one source")
        check(self.row_tokens >= 8, "row_tokens", self.row_tokens, "at least 8")
        check(self.min_chars >= 1, "min_chars", self.min_chars, "at least 1")
        check(0 <= self.max_bad < 1, "max_bad", self.max_bad, "a share from 0 to below 1")
        check(self.max_epochs >= 1, "max_epochs", self.max_epochs, "at least 1")
        check(self.shard_tokens >= self.row_tokens, "shard_tokens", self.shard_tokens, "at least row_tokens")
        for name in self.splits:
            check(_SPLIT_NAME.fullmatch(name) is not None, "splits", name, "names of letters, digits, - and _")
        total = sum(split.share for split in self.splits.values())
        check(abs(total - 1) < 1e-6, "splits", total, "shares that sum to 1")
        chats = {holds_chats(source) for source in self.sources}
        cut = any(split.max_document_chars is not None for split in self.splits.values())
        check(not (cut and True in chats), "max_document_chars", "set", "unset for conversations")
        wholly = self.trained_turns == "all"
        check(not wholly or True in chats, "trained_turns", "all", "unset for texts, of which every token is trained")
        check(len(chats) == 1, "sources", sorted(s.kind for s in self.sources), "all chats or no chats")
        self._check_weights()

    def _check_weights(self) -> None:
        shares = [source.share for source in self.sources if source.share is not None]
        total = sum(shares)
        if len(shares) == len(self.sources):
            check(abs(total - 1) < 1e-6, "sources", total, "shares that sum to 1")
        else:
            check(total < 1, "sources", total, "shares that leave something for the sources without one")

    @property
    def weighted(self) -> bool:
        """Whether any source says how much of it is taken."""
        return any(source.epochs is not None or source.share is not None for source in self.sources)

    def weights_hold(self, split: str) -> bool:
        """Whether the sources' weights hold in a split."""
        said = self.splits[split].weighted
        return self.weighted and (said if said is not None else split == next(iter(self.splits)))

    @property
    def conversations(self) -> bool:
        """Whether its documents are chats."""
        return holds_chats(self.sources[0])

    def identity(self) -> str:
        """The digest of what decides on the result: limits that only stop the work are left out."""
        calm = dataclasses.replace(self.duplicates, memory_mb=DuplicatesRecipe().memory_mb)
        return digest_json(dataclasses.replace(self, duplicates=calm, max_bad=0.0))


def weights_of(recipe: PrepareRecipe, split: str) -> list[tuple[float | None, float | None]]:
    """(epochs, share) of each source in a split; one epoch of each where no weights hold."""
    if not recipe.weights_hold(split):
        return [(1.0, None) for _ in recipe.sources]
    return [(1.0 if s.epochs is None and s.share is None else s.epochs, s.share) for s in recipe.sources]


def plain_source(source: Source) -> dict[str, str]:
    """A source's settings as text, for the record."""
    from blockexpand.records import to_plain

    plain: dict[str, Any] = to_plain(source)
    return {key: str(value) for key, value in plain.items()}
