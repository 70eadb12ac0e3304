"""What is known of one model family, and its tensor names read exactly.

In: a family file as plain data (`families/data/*.toml`), through `records.from_plain`, strictly.
Out: a frozen `Family` that says which tensors a block has, which of them write to the residual stream,
and what inserting blocks does to each per-layer config entry.
Refused: unknown keys, a writer the block does not have, and any tensor name that is not exactly a name
of this family: nothing is ever matched by substring.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from blockexpand.errors import FamilyError
from blockexpand.families.blocks import BlockFacts, Switched, matches_any
from blockexpand.families.configs import entry, section, switched_on
from blockexpand.families.rules import Only, PerLayer
from blockexpand.records import check

Loader = Literal["text", "image-text"]
"""Which of transformers' automatic classes loads a model: a causal language model's, or an image-text-to-text one's."""
SCALE = "_scale_inv"
"""What FP8 files append to a weight's name for its scales (transformers 5.24, integrations/finegrained_fp8.py)."""


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
    """Multiplied with each token's hidden state after the last block (the output head); for the cost."""
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

    def writers_among(self, tails: Iterable[str]) -> tuple[str, ...]:
        """The tails that write to the residual stream, in the order given."""
        return tuple(t for t in tails if matches_any(self.block.writers, t))

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
