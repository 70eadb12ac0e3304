"""What was seen in each arm's chosen run beside its losses: the record, saved as `examination.json`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from blockexpand.comparison.recipe import ExamineSettings
from blockexpand.records import read_record
from blockexpand.records.intervals import Interval

EXAMINATION_NAME = "examination.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """Where the base ranks the tokens that a model says greedily (the paper's figure 6, after URIAL)."""

    rank_1: float
    """Share of tokens that the base would have said too."""
    rank_2_3: float
    beyond: float
    rank_1_interval: Interval
    """Its 95 % interval, over prompts."""
    num_tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockEffect:
    """One new block of a trained model."""

    id: str
    position: int
    moved: dict[str, float]
    """By text: how much it adds to a token's hidden state, as a share of that state's size; 0 for an identity."""
    missed: dict[str, float]
    """By text: how much the loss rises, in nats per token, when this one block is bypassed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """One model, examined; kept in the run's folder so that it is not examined again."""

    FORMAT: ClassVar[str] = "blockexpand.seen"
    FORMAT_VERSION: ClassVar[int] = 1

    settings: ExamineSettings
    corpora: dict[str, str]
    """The digest of each text's split."""
    shifts: dict[str, Shift]
    """By text; none of the base itself."""
    blocks: tuple[BlockEffect, ...]
    """Of an expanded model."""
    continuations: dict[str, tuple[str, ...]]
    """By text, the first prompts' greedy continuations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examination:
    """All arms of a comparison, examined."""

    FORMAT: ClassVar[str] = "blockexpand.examination"
    FORMAT_VERSION: ClassVar[int] = 1

    settings: ExamineSettings
    prompts: dict[str, tuple[str, ...]]
    """By text, the beginnings that were continued, as many as are shown."""
    base: Seen
    arms: dict[str, Seen]
    """By the arm's name."""
    runs: dict[str, str]
    """The run that was looked at, by the arm's name."""


def read_examination(folder: str | Path) -> Examination | None:
    """The examination in a comparison's folder; None when there is none.

    Raises:
        RecordError: it is damaged.
    """
    path = Path(folder) / EXAMINATION_NAME
    return read_record(Examination, path) if path.is_file() else None
