"""What went into a prepared folder, what was dropped and why, and what is in it: its `blockexpand.json`."""

from __future__ import annotations

import dataclasses
from typing import ClassVar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One Arrow file of a split."""

    name: str
    num_rows: int
    num_tokens: int
    num_trained_tokens: int
    largest_token: int
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixCounts:
    """How much of one source is in a split."""

    source: str
    """Its kind and path."""
    own_tokens: int
    """That it has for this split."""
    num_tokens: int
    """That were taken."""
    wanted_epochs: float
    got_epochs: float
    wanted_share: float
    got_share: float
    """Of the split's tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What one split holds; the parts sum to the wholes."""

    num_rows: int
    num_documents: int
    """A document that was taken twice counts twice."""
    num_tokens: int
    """Tokens in segments, the one-token overlaps of cut documents included."""
    num_trained_tokens: int
    num_bytes: int
    """UTF-8 bytes of the documents' text: the divisor of bits per byte."""
    largest_token: int
    """The largest token id in it: the model's embeddings must reach so far."""
    fill: float
    """Share of positions that hold a token."""
    digest: str
    """Of the split's Arrow file; of several, of their digests in order."""
    shards: tuple[Shard, ...] = ()
    """Its Arrow files, in order."""
    mix: tuple[MixCounts, ...] = ()
    """Where there are several sources, or weights: what was asked for and what came of it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What became of one source's documents.

    Read = kept + empty + duplicates + near duplicates + contaminated + other splits + beyond the
    limit + bad.
    """

    source: dict[str, str]
    """Its path, and as what it was read: kind, columns, field, separator."""
    num_read: int
    num_kept: int
    num_empty: int
    num_duplicates: int
    num_other_splits: int
    """Documents of splits that this dataset was not asked for."""
    num_beyond_limit: int
    """Documents left over when a split had its `max_tokens`."""
    num_near_duplicates: int = 0
    num_contaminated: int = 0
    """Documents that quote an evaluation text."""
    num_bad: int = 0
    """Records that could not be read."""
    bad: tuple[str, ...] = ()
    """The first few records that could not be read, each with its place and what is wrong."""
    examples: tuple[str, ...] = ()
    """The first few documents of each kind that were dropped, and why."""
    num_files: int = 0
    num_bytes: int = 0
    """Of the files, as they lie on the disk."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """What went into a prepared folder; saved as its `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.corpus"
    FORMAT_VERSION: ClassVar[int] = 1

    row_tokens: int
    tokenizer_digest: str
    """Of tokenizer.json: a model trained on this must have the same."""
    vocabulary_size: int
    """One more than the largest token id that the tokenizer can give."""
    recipe_digest: str
    inputs_digest: str = ""
    """Of the recipe, the tokenizer with its chat template, and the contents of all files: by it a run goes on."""
    conversations: bool
    """Whether the documents are conversations, of which the assistant's turns are trained, or all."""
    sources: tuple[SourceCounts, ...]
    splits: dict[str, SplitCounts]
    gap_tokens: int = 0
    """Where documents were too few for the splits, texts were cut, a span for each split with so many tokens between
    them left out; 0 = the splits hold whole documents."""
    num_evaluation_texts: int = 0
    """Texts that the documents were held against (`decontaminate`)."""
    num_evaluation_texts_skipped: int = 0
    """Texts that were too short for it."""
