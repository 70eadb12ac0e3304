"""What is known of one model family, and its tensor names read exactly.

In: a family file as plain data (`families/data/*.toml`), through `records.from_plain`, strictly.
Out: a frozen `Family` that says which tensors a block has, which of them write to the residual stream,
and what inserting blocks does to each per-layer config entry.
Refused: unknown keys, a writer the block does not have, and any tensor name that is not exactly a name
of this family: nothing is ever matched by substring.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from blockexpand.errors import FamilyError
from blockexpand.records import check

NUMBER = "{n}"
"""In a tensor name of a family file: one component that is a whole number "
"(`experts.{n}.down_proj.weight`)."""


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(r"\.".join(r"(0|[1-9][0-9]*)" if p == NUMBER else re.escape(p) for p in pattern.split(".")))


def tail_matches(pattern: str, tail: str) -> bool:
    """Whether `tail` is the name, or one of the numbered names, that a family file's `pattern` states."""
    return _pattern(pattern).fullmatch(tail) is not None


def switched_on(config: dict[str, Any], switch: str, default: bool) -> bool:
    """The value of a true-or-false config entry; missing and null mean the config class's default.

    Raises:
        FamilyError: it is neither true nor false.
    """
    value = config.get(switch)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise FamilyError(f"config.json: {switch} is {value!r}; expected true or false; mend the base's config.json")
    return value


@dataclass(frozen=True, kw_only=True)
class Tied:
    """A tensor that is the same as another when the config says so."""

    tensor: str
    """The name that may be absent from the files then."""
    source: str
    """The tensor it equals."""
    switch: str
    """The config entry that ties them."""
    switch_default: bool
    """What the entry means when it is missing."""


@dataclass(frozen=True, kw_only=True)
class OuterFacts:
    """The tensors outside the blocks."""

    required: tuple[str, ...]
    """Always there."""
    matrices: tuple[str, ...] = ()
    """Multiplied with each token's hidden state after the last block (the output head); for the cost."""
    tied: tuple[Tied, ...] = ()
    """There unless tied; when tied they may be stored a second time."""


@dataclass(frozen=True, kw_only=True)
class Switched:
    """Tensors a block has exactly when a config entry is on."""

    switch: str
    """The config entry."""
    switch_default: bool
    """What it means when it is missing."""
    tensors: tuple[str, ...]
    """The tails."""


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """The tensors of one block, by tail: the name after `model.layers.7.`."""

    required: tuple[str, ...]
    """Always there."""
    switched: tuple[Switched, ...] = ()
    """There when the config says so."""
    buffers: tuple[str, ...] = ()
    """May be there, and are no parameters: copied with the block, not counted, not trained."""
    writers: tuple[str, ...]
    """Tails whose product is added to the residual stream (weights and biases); zero makes an identity."""
    attention_output: str
    """The projection after attention; its number of columns is heads times head width (for the cost)."""

    def __post_init__(self) -> None:
        tails = (*self.required, *(t for group in self.switched for t in group.tensors))
        check(len(set(tails)) == len(tails), "required", tails, "each tail once")
        for writer in self.writers:
            check(writer in tails, "writers", writer, "one of the block's own tails")
        check(
            self.attention_output in self.required,
            "attention_output",
            self.attention_output,
            "a required tail",
        )


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
class Stack:
    """Where the blocks are."""

    tensors: str
    """The block list's path in tensor names as the files have them, e.g. `model.layers`."""
    module: str
    """Its path in the model that transformers builds."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor belongs."""

    block: int | None
    """The block's index, or None for a tensor outside the blocks."""
    tail: str
    """The name inside the block, or the whole name."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family: everything about it that is not the same for all."""

    name: str
    """What plans call it."""
    model_types: tuple[str, ...]
    """The `model_type` values of config.json that it serves."""
    architectures: tuple[str, ...]
    """The model classes it serves; a classifier's extra head, for one, is not a language model's."""
    depth_key: str
    """The config entry with the number of blocks."""
    stack: Stack
    """Where the blocks are."""
    outer: OuterFacts
    """The tensors outside the blocks."""
    block: BlockFacts
    """The tensors of a block."""
    per_layer: tuple[CopyFromDonor | Threshold, ...] = ()
    """What insertion does to each config entry that speaks of single blocks."""

    def depth(self, config: dict[str, Any]) -> int:
        """The number of blocks the config states.

        Raises:
            FamilyError: it is missing, not a whole number, or not positive.
        """
        value = config.get(self.depth_key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FamilyError(
                f"config.json: {self.depth_key} is {value!r}; expected the number of blocks, 1 or more; mend the "
                "base's config.json"
            )
        return value

    def locate(self, name: str) -> Place:
        """Where the tensor `name` belongs. Parsed, never searched: `model.layers.3.` is not in 30 to 39."""
        prefix = self.stack.tensors + "."
        if name.startswith(prefix):
            index, _, tail = name[len(prefix) :].partition(".")
            if tail and re.fullmatch(r"0|[1-9][0-9]{0,5}", index):
                return Place(block=int(index), tail=tail)
        return Place(block=None, tail=name)

    def name_of(self, block: int, tail: str) -> str:
        """The tensor name that `locate` takes apart."""
        return f"{self.stack.tensors}.{block}.{tail}"

    def required_tails(self, config: dict[str, Any]) -> tuple[str, ...]:
        """The tails (or patterns of tails) every block must have under this config."""
        groups = (g for g in self.block.switched if switched_on(config, g.switch, g.switch_default))
        return (*self.block.required, *(tail for group in groups for tail in group.tensors))

    def allowed_tails(self, config: dict[str, Any]) -> tuple[str, ...]:
        """The tails a block may have under this config."""
        return (*self.required_tails(config), *self.block.buffers)

    def switch_of(self, tail: str) -> Switched | None:
        """The switched group a tail belongs to, if any: says which config entry is off when it is refused."""
        return next((g for g in self.block.switched if any(tail_matches(p, tail) for p in g.tensors)), None)

    def is_buffer(self, tail: str) -> bool:
        """Whether the tail is no parameter."""
        return any(tail_matches(pattern, tail) for pattern in self.block.buffers)

    def writers_among(self, tails: Iterable[str]) -> tuple[str, ...]:
        """The tails that write to the residual stream, in the order given."""
        return tuple(t for t in tails if any(tail_matches(pattern, t) for pattern in self.block.writers))

    def tied_under(self, config: dict[str, Any]) -> tuple[Tied, ...]:
        """The pairs that are one tensor under this config."""
        return tuple(t for t in self.outer.tied if switched_on(config, t.switch, t.switch_default))

    def outer_required(self, config: dict[str, Any]) -> tuple[str, ...]:
        """The names outside the blocks that must be there."""
        tied = self.tied_under(config)
        return (*self.outer.required, *(t.tensor for t in self.outer.tied if t not in tied))

    def outer_allowed(self) -> tuple[str, ...]:
        """The names outside the blocks that may be there."""
        return (*self.outer.required, *(t.tensor for t in self.outer.tied))
