"""What is known of one model family, and its tensor names read exactly.

In: a family file as plain data (`families/data/*.toml`), through `records.from_plain`, strictly.
Out: a frozen `Family` that says which tensors a block has, which of them write to the residual stream,
and what inserting blocks does to each per-layer config entry.
Refused: unknown keys, a writer the block does not have, and any tensor name that is not exactly a name
of this family: nothing is ever matched by substring.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from blockexpand.errors import FamilyError
from blockexpand.families.entries import entry, section, switched_on
from blockexpand.families.rules import Only, PerLayer
from blockexpand.records import check

Loader = Literal["text", "image-text"]
"""Which of transformers' automatic classes loads a model: a causal language model's, or an image-text-to-text one's."""
SCALE = "_scale_inv"
"""What FP8 files append to a weight's name for its scales (transformers 5.24, integrations/finegrained_fp8.py)."""


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
    experts: bool = False
    """Whether blocks have experts, so that tokens of all documents in a row go through one product."""
    in_memory: tuple[InMemory, ...] = ()
    """Where the loaded model's names differ from the files'."""

    def __post_init__(self) -> None:
        tails = self.always_or_sometimes
        plain = (*self.required, *(t for group in self.switched for t in group.tensors), *self.optional)
        check(len(set(plain)) == len(plain), "required", plain, "each tail once")
        for field, listed in (
            ("writers", self.writers),
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
    optional: tuple[str, ...] = ()
    """May be there."""
    copied: tuple[str, ...] = ()
    """Modules beside the text stack (a vision tower, say): whatever is below these names is copied through."""
    matrices: tuple[str, ...] = ()
    """Multiplied with each token's hidden state after the last block: the output head."""
    tied: tuple[Tied, ...] = ()
    """There unless tied; when tied they may be stored a second time."""


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """The config entries by which logits are more than the head's product; none in most families."""

    factor_key: str | None = None
    """Multiplies the logits (Cohere: `logit_scale`)."""
    divisor_key: str | None = None
    """Divides them (Granite: `logits_scaling`)."""
    soft_cap_key: str | None = None
    """c in c tanh(logits / c), after the factor (Gemma 2: `final_logit_softcapping`)."""


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """Another way the files of a family may spell the beginning of its names."""

    usual: str
    """How the family file spells it, with its last dot, e.g. `transformer.`."""
    instead: str
    """How such files do, e.g. nothing at all."""


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
    published_code: tuple[str, ...] = ()
    """Classes that the family's models were published with (`auto_map`) before transformers had its own, which is the
    one that is used: a config that names these and no others is taken."""
    loader: Loader = "text"
    """Which of transformers' automatic classes loads it."""
    config_section: str = ""
    """The part of config.json that speaks of the text stack, e.g. `text_config`; empty for the whole."""
    depth_key: str
    """The config entry with the number of blocks."""
    extra_blocks_key: str | None = None
    """The entry with how many blocks for predicting further tokens the files number after the last block."""
    stack: Stack
    """Where the blocks are."""
    spellings: tuple[Spelling, ...] = ()
    """Other beginnings of names that files of this family have."""
    outer: OuterFacts
    """The tensors outside the blocks."""
    block: BlockFacts
    """The tensors of a block."""
    head: HeadFacts = HeadFacts()
    """What becomes of the logits."""
    per_layer: tuple[PerLayer, ...] = ()
    """What insertion does to each config entry that speaks of single blocks."""
    only: tuple[Only, ...] = ()
    """Settings with which a silent copy is no identity, and those with which it is."""
    not_per_layer: tuple[str, ...] = ()
    """Lists of this family that say nothing about single blocks, whatever their length."""
    discovered: bool = False
    """Whether no file says it: found by structure for one config, so that the proof decides."""

    def __post_init__(self) -> None:
        check(all(s.usual.endswith(".") for s in self.spellings), "spellings", self.spellings, "names up to a dot")

    def text(self, config: dict[str, Any]) -> dict[str, Any]:
        """The part of the config that speaks of the text stack.

        Raises:
            FamilyError: the part is something else than settings.
        """
        return section(config, self.config_section)

    def path_of(self, config: dict[str, Any]) -> str:
        """Where that part is; empty when the text settings are at the top."""
        return self.config_section if config.get(self.config_section) is not None else ""

    def depth(self, config: dict[str, Any]) -> int:
        """The number of blocks the config states.

        Raises:
            FamilyError: it is missing, not a whole number, or not positive.
        """
        value = self.text(config).get(self.depth_key)
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

    def renumbered(self, name: str, new_index: Callable[[int], int]) -> str:
        """What a tensor of the base is called in a deeper checkpoint; `new_index` is the plan's."""
        place = self.locate(name)
        return name if place.block is None else self.name_of(new_index(place.block), place.tail)

    def num_extra_blocks(self, config: dict[str, Any]) -> int:
        """How many blocks the files may hold, and the stack does not, after the last one.

        Raises:
            FamilyError: the entry is not a whole number.
        """
        value = entry(self.text(config), self.extra_blocks_key) if self.extra_blocks_key else 0
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise FamilyError(
                f"config.json: {self.extra_blocks_key} is {value!r}; expected a number of blocks, 0 or more; mend the "
                "base's config.json"
            )
        return value or 0

    def spelled_as_in(self, names: Iterable[str]) -> Family:
        """The same family with its names as these files spell them."""
        held = tuple(names)
        for spelling in self.spellings:
            there = spelling.instead + self.stack.tensors.removeprefix(spelling.usual) + "."
            usual = self.stack.tensors + "."
            if any(n.startswith(there) for n in held) and not any(n.startswith(usual) for n in held):
                return self._spelled(spelling)
        return self

    def _spelled(self, spelling: Spelling) -> Family:
        def spell(name: str) -> str:
            return spelling.instead + name.removeprefix(spelling.usual) if name.startswith(spelling.usual) else name

        outer = self.outer
        return dataclasses.replace(
            self,
            stack=dataclasses.replace(self.stack, tensors=spell(self.stack.tensors)),
            outer=dataclasses.replace(
                outer,
                required=tuple(map(spell, outer.required)),
                optional=tuple(map(spell, outer.optional)),
                copied=tuple(map(spell, outer.copied)),
                matrices=tuple(map(spell, outer.matrices)),
                tied=tuple(dataclasses.replace(t, tensor=spell(t.tensor), source=spell(t.source)) for t in outer.tied),
            ),
        )

    def required_tails(self, config: dict[str, Any], tails: Iterable[str] = ()) -> tuple[str, ...]:
        """The tails (or patterns of tails) a block that has these tails must have under this config."""
        text, held = self.text(config), tuple(tails)
        groups = (g for g in self.block.switched if switched_on(text, g.switch, g.switch_default))
        made = [option for choice in self.block.choices for option in choice.made(held)[:1]]
        return (
            *self.block.required,
            *(tail for group in groups for tail in group.tensors),
            *(tail for option in made for tail in option.tensors),
        )

    def allowed_tails(self, config: dict[str, Any], tails: Iterable[str] = ()) -> tuple[str, ...]:
        """The tails a block that has these tails may have under this config."""
        allowed = (*self.required_tails(config, tails), *self.block.optional)
        scales = [f"{tail}{SCALE}" for tail in allowed if tail.endswith(".weight")] if is_fp8(config) else []
        return (*allowed, *self.block.buffers, *scales)

    def switch_of(self, tail: str) -> Switched | None:
        """The switched group a tail belongs to, if any: says which config entry is off when it is refused."""
        return next((g for g in self.block.switched if matches_any(g.tensors, tail)), None)

    def is_buffer(self, tail: str) -> bool:
        """Whether the tail is no parameter."""
        return matches_any(self.block.buffers, tail) or tail.endswith(SCALE)

    def starts(self, tail: str) -> Literal["donor", "zero", "minus-one"]:
        """What a tensor is in a new block."""
        if matches_any(self.block.minus_one, tail):
            return "minus-one"
        return "zero" if matches_any(self.block.writers, tail) else "donor"

    def tied_under(self, config: dict[str, Any]) -> tuple[Tied, ...]:
        """The pairs that are one tensor under this config."""
        return tuple(t for t in self.outer.tied if switched_on(config, t.switch, t.switch_default))

    def outer_required(self, config: dict[str, Any]) -> tuple[str, ...]:
        """The names outside the blocks that must be there."""
        tied = self.tied_under(config)
        return (*self.outer.required, *(t.tensor for t in self.outer.tied if t not in tied))

    def outer_known(self) -> tuple[str, ...]:
        """The names outside the blocks that the family lists."""
        return (*self.outer.required, *self.outer.optional, *(t.tensor for t in self.outer.tied))

    def may_be_outer(self, name: str) -> bool:
        """Whether a tensor of this name may be there outside the blocks."""
        return name in self.outer_known() or any(name.startswith(f"{module}.") for module in self.outer.copied)


def is_fp8(config: dict[str, Any]) -> bool:
    """Whether the weights are FP8 with scales beside them: there zero bytes are zero, whatever the scale."""
    return entry(config, "quantization_config.quant_method") == "fp8"
