"""What inserting blocks does to the config entries that speak of single blocks: the facts, one class a kind of rule.

In: the `per_layer` tables of a family file. Out: frozen values. What each means for a deeper stack is expansion's
business (`expansion/deeper_config.py`); nothing is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from blockexpand.records import check


@dataclass(frozen=True, kw_only=True)
class CopyFromDonor:
    """A list with one item a block: old blocks keep theirs, a new block gets its donor's."""

    kind: Literal["copy-from-donor"]
    key: str
    """The config entry; nothing is done when it is missing or null."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Blocks from a stated index on are of another kind, unless a list says so block by block.

    When the rule is in force the list is written out for the deeper stack, each block with the kind it had
    or its donor has, and the threshold is renumbered if the new list still is one.
    """

    kind: Literal["threshold"]
    key: str
    """The first index of the second kind."""
    key_default: int
    """What it is when missing."""
    switch: str
    """The config entry that puts the threshold in force."""
    switch_default: bool
    """What it means when it is missing."""
    also_needs: str
    """An entry that must not be null for the threshold to be in force; missing is not null."""
    list_key: str
    """The list that overrides the threshold."""
    below: str
    """The kind before the threshold."""
    from_there_on: str
    """The kind from the threshold on."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A list with one item a block that the class derives from a period when it is missing (or empty).

    The last block of each period is of another kind. The list is written out for the deeper stack; the class
    then no longer looks at the period.
    """

    kind: Literal["pattern"]
    key: str
    """The list."""
    period_key: str | None = None
    """The config entry with the period, if there is one."""
    period_default: int
    """The period when the entry is missing."""
    last: Any
    """The item of each period's last block."""
    others: Any
    """The item of the other blocks."""
    switch: str | None = None
    """A config entry (off when missing) without which every block is like the last of a period."""
    below_key: str | None = None
    """A config entry with an index from which on every block is like the last of a period."""
    below_default: int = 0
    """What that entry is when missing."""


@dataclass(frozen=True, kw_only=True)
class Indices:
    """A list of the indices of the blocks of one kind: renumbered, with the new blocks of that kind added.

    With `step_key`, blocks are of that kind also when (index + 1) is not a multiple of the step; then the list
    is made to say it all and the step becomes 1. With `every_key`, a missing list means each period's last.
    """

    kind: Literal["indices"]
    key: str
    """The list."""
    step_key: str | None = None
    """The config entry with the step, if there is one."""
    every_key: str | None = None
    """The config entry with the period that a missing list means, if there is one."""
    default: int = 1
    """What that entry is when missing."""


@dataclass(frozen=True, kw_only=True)
class First:
    """The first so many blocks are of one kind, the rest of another, and no list can say it otherwise."""

    kind: Literal["first"]
    key: str
    """How many."""
    default: int
    """What the entry is when missing."""


@dataclass(frozen=True, kw_only=True)
class Every:
    """Blocks whose index leaves a stated remainder are of one kind, and no list can say it otherwise."""

    kind: Literal["every"]
    period_key: str
    """The config entry with the period."""
    period_default: int
    """What it is when missing."""
    offset_key: str
    """The config entry with the remainder."""
    offset_default: int
    """What it is when missing."""


@dataclass(frozen=True, kw_only=True)
class Between:
    """Blocks from a first to a last index, at an interval, are of one kind, and no list can say it otherwise.

    They are those whose index plus one is a multiple of the interval.
    """

    kind: Literal["between"]
    start_key: str
    """The first index."""
    start_default: int
    """What it is when missing."""
    end_key: str
    """The last index; -1 means the last block, and so does a missing entry."""
    interval_key: str
    """The interval; 1 when missing."""


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """GPT-Neo's nested list: pairs of a list of kinds and how often it is repeated, and the same spelled out."""

    kind: Literal["repeats"]
    key: str
    """The nested list."""
    default: tuple[str, ...]
    """The kinds that repeat when it is missing."""
    list_key: str
    """The list spelled out, which the class derives and also saves."""


@dataclass(frozen=True, kw_only=True)
class WrittenOut:
    """A list with one item a block that the class derives for this very config when it is missing.

    Found by structure, where how the class derives it is not known: it is written out for the deeper stack.
    """

    kind: Literal["written-out"]
    key: str
    """The list."""
    items: tuple[Any, ...]
    """What the class derives for the base."""


PerLayer = CopyFromDonor | Threshold | Pattern | Indices | First | Every | Between | Repeats | WrittenOut


def keys_of(rule: PerLayer) -> tuple[str, ...]:
    """The config entries that a rule speaks of and that hold a list."""
    match rule:
        case Threshold() | Repeats():
            return (rule.key, rule.list_key)
        case First() | Every() | Between():
            return ()
        case _:
            return (rule.key,)


@dataclass(frozen=True, kw_only=True)
class Only:
    """A config entry that must have one of some values for a copy with silent writers to be an identity."""

    key: str
    """The entry, with a dot for one inside another."""
    default: Any
    """What it is when missing or null."""
    allowed: tuple[Any, ...]
    """The values that are served."""
    why: str
    """What another value does, as the second half of a sentence."""

    def __post_init__(self) -> None:
        check(len(self.allowed) > 0, "allowed", self.allowed, "at least one value")
