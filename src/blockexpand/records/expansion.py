"""`blockexpand.json`: what an expanded folder says about itself, the proof included.

In and out: frozen values, strictly read. Every later step reads here which blocks are
new. There is no time or machine in it: expanding twice writes the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from blockexpand.errors import PlanError
from blockexpand.records.codec import WRITTEN_WHEN_SET, check, read_record
from blockexpand.records.plan import Plan
from blockexpand.staging import RECORD_NAME

MODEL_IN_RUN = "model"
"""Where runs, and outputs of `learn`, have their model."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was proved, or was not."""

    name: str
    """What must hold."""
    passed: bool
    """Whether it does."""
    figure: str
    """The measured figure, in words."""

    @property
    def line(self) -> str:
        """The check in one line."""
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name}: {self.figure}"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Every check of one proof."""

    FORMAT: ClassVar[str] = "blockexpand.proof"
    FORMAT_VERSION: ClassVar[int] = 1

    plan_digest: str
    """The digest of the plan it is about."""
    trained: bool
    """Whether the new blocks were taken to be trained."""
    dtypes: tuple[str, ...]
    """The precisions in which logits were compared."""
    device: str
    """Where they were computed."""
    checks: tuple[Check, ...]
    """Every check, in the order it was made."""
    left_out: tuple[str, ...] = field(default=(), metadata=WRITTEN_WHEN_SET)
    """What was not looked at, and why."""

    @property
    def passed(self) -> bool:
        """Whether all of them hold."""
        return all(check.passed for check in self.checks)

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each check, and for what was left out."""
        return (*(check.line for check in self.checks), *(f"--   left out: {what}" for what in self.left_out))


@dataclass(frozen=True, kw_only=True)
class FileText:
    """What one file is besides tensors."""

    name: str
    """The file's name."""
    text: str
    """The whole text of a JSON file; the header of a weights file without the spaces at its end."""
    padding: int = 0
    """The spaces at the end of the header."""


@dataclass(frozen=True, kw_only=True)
class AttachedPack:
    """One pack whose blocks are in the folder."""

    name: str
    """What it is called."""
    fingerprint: str
    """The digest of its blocks and of the base it is for."""
    plan: Plan
    """Its own plan, for the base alone."""
    blocks: dict[str, str]
    """For each of its blocks, by its own id, the id in the folder's plan."""
    about: dict[str, Any]
    """What its pack.json says of training, evaluation and licence."""


@dataclass(frozen=True, kw_only=True)
class ExpansionRecord:
    """The plan a checkpoint was made by, and the fingerprints of what it was made from."""

    FORMAT: ClassVar[str] = "blockexpand.expansion"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    """The version that wrote the folder."""
    plan: Plan
    """Which blocks are new. Every later step reads it here and nowhere else."""
    base_digests: dict[str, str] | None
    """The BLAKE3 of each tensor of the base (SHA-256 in older folders; the prefix says); null when switched off."""
    files_copied: tuple[str, ...]
    """The base's other files that came along."""
    files_left_out: tuple[str, ...]
    """Those that stayed: weights in other formats, hidden folders."""
    proof: Proof | None = None
    """The proof, when it was asked for; a folder whose proof failed is never written."""
    training: dict[str, Any] | None = None
    """Null as expanded. What trains the new blocks states here from which run they are."""
    base_files: tuple[FileText, ...] = field(default=(), metadata=WRITTEN_WHEN_SET)
    """The text of the base's config and the headers of its weights: with the old blocks' bytes, its very files."""
    packs: tuple[AttachedPack, ...] = field(default=(), metadata=WRITTEN_WHEN_SET)
    """The packs whose blocks these are, where `pack attach` wrote the folder."""

    def __post_init__(self) -> None:
        """Packs, where there are any, share the new blocks out among them."""
        if self.packs:
            owned = sorted(block for pack in self.packs for block in pack.blocks.values())
            expected = sorted(block.id for block in self.plan.new_blocks)
            check(owned == expected, "packs", owned, f"each new block once: {expected}")


def read_expansion(folder: Path | str) -> ExpansionRecord:
    """The record of an expanded folder, or of the one in a run.

    Raises:
        PlanError: the folder has none, so nobody can say which of its blocks are new.
        RecordError: it is of another version or does not fit.
    """
    own, inner = Path(folder) / RECORD_NAME, Path(folder) / MODEL_IN_RUN / RECORD_NAME
    path = inner if inner.is_file() else own
    if not path.is_file():
        raise PlanError(
            f"{folder} has no {RECORD_NAME}, which says which blocks are new; expected a folder that blockexpand "
            "expanded; expand the base again"
        )
    return read_record(ExpansionRecord, path)
