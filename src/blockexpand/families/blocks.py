"""What one block of a family consists of, by tensor name, and which of its tensors write to the residual stream.

In: the `block` table of a family file. Out: a frozen `BlockFacts`. Refused: a writer the block does not have.
Names are patterns of whole components; nothing is ever matched by substring.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from blockexpand.records import check

NUMBER = "{n}"
"""In a tensor name of a family file: one component that is a whole number (`experts.{n}.down_proj.weight`)."""


@functools.cache
def _pattern(pattern: str) -> re.Pattern[str]:
    return re.compile(r"\.".join(r"(0|[1-9][0-9]*)" if p == NUMBER else re.escape(p) for p in pattern.split(".")))


def tail_matches(pattern: str, tail: str) -> bool:
    """Whether `tail` is the name, or one of the numbered names, that a family file's `pattern` states."""
    return _pattern(pattern).fullmatch(tail) is not None


def matches_any(patterns: Iterable[str], tail: str) -> bool:
    """Whether one of the patterns states this name."""
    return any(tail_matches(pattern, tail) for pattern in patterns)


def missing_number(pattern: str, tails: Iterable[str]) -> str | None:
    """The first tail that a numbered pattern leaves out below the highest number that is there."""
    if NUMBER not in pattern.split("."):
        return None
    matches = (_pattern(pattern).fullmatch(tail) for tail in tails)
    held = {int(match.group(1)) for match in matches if match}
    gap = next((n for n in range(len(held)) if n not in held), None)
    return None if gap is None else pattern.replace(NUMBER, str(gap))


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
class Option:
    """One way a block can be made."""

    name: str
    """What errors call it."""
    tensors: tuple[str, ...]
    """The tails a block made this way has; none when it has nothing of this."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Blocks differ here: each is made in exactly one of these ways, and its tensors say in which."""

    what: str
    """What is made so, e.g. `feed-forward`."""
    options: tuple[Option, ...]
    """The ways."""

    def made(self, tails: Iterable[str]) -> list[Option]:
        """The options whose every tensor is among the tails; the empty option when there is no other."""
        held = tuple(tails)
        full = [o for o in self.options if o.tensors and all(any(tail_matches(p, t) for t in held) for p in o.tensors)]
        return full or [o for o in self.options if not o.tensors]


@dataclass(frozen=True, kw_only=True)
class InMemory:
    """Tensors that transformers holds under another name than the files do, several of them as one perhaps."""

    files: tuple[str, ...]
    """The tails in the files."""
    memory: str
    """The tail in the loaded model."""


@dataclass(frozen=True, kw_only=True)
class Experts:
    """Tensors of which a token uses only a part, for the cost."""

    tensors: tuple[str, ...]
    """The tails of all experts' matrices."""
    used_key: str
    """The config entry with how many experts a token uses."""
    used_default: int
    """What it is when missing."""


@dataclass(frozen=True, kw_only=True)
class BlockFacts:
    """The tensors of one block, by tail: the name after `model.layers.7.`."""

    required: tuple[str, ...]
    """Always there."""
    switched: tuple[Switched, ...] = ()
    """There when the config says so."""
    choices: tuple[Choice, ...] = ()
    """Where blocks differ from each other."""
    optional: tuple[str, ...] = ()
    """May be there, alike in all blocks of a kind."""
    buffers: tuple[str, ...] = ()
    """May be there, and are no parameters: copied with the block, not counted, not trained."""
    writers: tuple[str, ...]
    """Tails whose product is added to the residual stream (weights and biases); zero makes an identity."""
    minus_one: tuple[str, ...] = ()
    """Writers that are gains stored as gain minus one: -1 makes an identity."""
    attention_output: tuple[str, ...] = ()
    """The projections after attention; their number of columns is heads times head width (for the cost)."""
    experts: Experts | None = None
    """What a token uses a part of."""
    in_memory: tuple[InMemory, ...] = ()
    """Where the loaded model's names differ from the files'."""

    def __post_init__(self) -> None:
        tails = self.always_or_sometimes
        plain = (*self.required, *(t for group in self.switched for t in group.tensors), *self.optional)
        check(len(set(plain)) == len(plain), "required", plain, "each tail once")
        for field, listed in (
            ("writers", self.writers),
            ("attention_output", self.attention_output),
            ("experts", self.experts.tensors if self.experts else ()),
            ("in_memory", tuple(t for group in self.in_memory for t in group.files)),
        ):
            for tail in listed:
                own = (*tails, *self.buffers) if field == "in_memory" else tails
                check(tail in own, field, tail, "one of the block's own tails")
        for tail in self.minus_one:
            check(tail in self.writers, "minus_one", tail, "one of the writers")
        for group in self.in_memory:
            writing = [tail in self.writers for tail in group.files]
            check(len(set(writing)) == 1, "in_memory", group.memory, "made of writers alone, or of none")

    @property
    def always_or_sometimes(self) -> tuple[str, ...]:
        """Every tail (or pattern) that a block of the family may have as a parameter."""
        switched = (t for group in self.switched for t in group.tensors)
        chosen = (t for choice in self.choices for option in choice.options for t in option.tensors)
        return (*self.required, *switched, *chosen, *self.optional)

    def name_in_memory(self, tail: str) -> str:
        """What the loaded model calls a tail of the files."""
        return next((group.memory for group in self.in_memory if matches_any(group.files, tail)), tail)
