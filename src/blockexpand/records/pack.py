"""`pack.json`: what a pack says of itself; and the words and settings of routing, which choose among packs.

In and out: frozen values, strictly read. Refused: digests that are not those of the plan's blocks, a family or dtype
that is not the plan's, a prompt too short to be scored, evidence below nothing. Nothing here says how to reach anything
on the maker's machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from blockexpand.records.codec import WRITTEN_WHEN_SET, check
from blockexpand.records.plan import BlockTensor, NewBlock, Plan

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"blake3:[0-9a-f]{64}")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
LEAST_GAIN, MOST_GAIN = 0.001, 1000.0
"""What lies beyond is a mistake rather than a scale: zero is the base, which needs no pack."""
_LONGEST = 10_000
"""Characters of a card's text."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a reader of the model card wants to know; all of it said by the maker, none of it checked."""

    description: str = ""
    """What the blocks were trained for."""
    licence: str | None = None
    """The licence of the blocks, as the hub spells it (`apache-2.0`)."""
    licence_name: str | None = None
    """The name of a licence that the hub does not list; then `licence` is `other`."""
    licence_link: str | None = None
    """Where that licence can be read: an address, or a file of the folder."""
    base_model: str | None = None
    """The base's name on the hub."""
    languages: tuple[str, ...] = ()
    """Language codes, e.g. `en`."""
    datasets: tuple[str, ...] = ()
    """Names of what they were trained on, as on the hub."""
    tags: tuple[str, ...] = ()
    """Further words to find it by."""

    def __post_init__(self) -> None:
        texts = {"description": self.description, "licence": self.licence, "base_model": self.base_model}
        for name, value in texts.items():
            check(value is None or len(value) <= _LONGEST, name, f"{len(value or ''):,} characters", f"{_LONGEST:,}")


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """That a pack was made of another by a gain."""

    of: str
    """The fingerprint of the pack whose blocks were trained: of one that was scaled twice, the first."""
    by: float
    """What its blocks write, in units of what those write."""

    def __post_init__(self) -> None:
        check(_FINGERPRINT.fullmatch(self.of) is not None, "of", self.of, "sha256: and 64 hex digits")
        check(LEAST_GAIN <= self.by <= MOST_GAIN, "by", self.by, f"{LEAST_GAIN:g} to {MOST_GAIN:,g}")


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    """What blocks a pack has, and what they are for."""

    FORMAT: ClassVar[str] = "blockexpand.pack"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    """The version that wrote it."""
    name: str
    """What it is called; also decides the order of packs in one place."""
    family: str
    """The base's family."""
    dtypes: tuple[str, ...]
    """The precisions of its tensors, as safetensors spells them."""
    plan: Plan
    """Where its blocks go in the base alone."""
    block_digests: dict[str, str]
    """The BLAKE3 of each tensor's bytes, by block id and tail."""
    base_digests: dict[str, str]
    """The BLAKE3 of each tensor of the base, by its name there."""
    training: dict[str, Any] | None = None
    """From which run the blocks are, as its record says; null when they were not trained."""
    evaluation: dict[str, Any] | None = None
    """What was measured, as `eval` or the run wrote it."""
    card: Card = field(default=Card(), metadata=WRITTEN_WHEN_SET)
    """For the model card."""
    scaled: Scaled | None = field(default=None, metadata=WRITTEN_WHEN_SET)
    """From which pack it was scaled, and by what; null when its blocks are as they were trained."""

    def __post_init__(self) -> None:
        expected = "1 to 64 letters, digits, dots, dashes and underlines, a letter or digit first"
        check(_NAME.fullmatch(self.name) is not None, "name", self.name, expected)
        check(self.family == self.plan.base.family, "family", self.family, f"the plan's, {self.plan.base.family!r}")
        dtypes = dtypes_of(self.plan)
        check(self.dtypes == dtypes, "dtypes", list(self.dtypes), f"the plan's, {list(dtypes)}")
        names = sorted(name for name, _, _ in tensors_of(self.plan))
        held = sorted(self.block_digests)
        odd = next((name for name in (*held, *names) if (name in held) != (name in names)), None)
        check(held == names, "block_digests", odd, "one for each tensor of the plan's new blocks")
        for kind, digests in (("block_digests", self.block_digests), ("base_digests", self.base_digests)):
            for name, digest in digests.items():
                check(_DIGEST.fullmatch(digest) is not None, f"{kind}.{name}", digest, "blake3: and 64 hex digits")

    @property
    def fingerprint(self) -> str:
        """The digest of the blocks, where they go, and the base they are for."""
        blocks = [[block.id, block.donor, block.after] for block in self.plan.new_blocks]
        facts = {"base": self.base_digests, "tensors": self.block_digests, "blocks": blocks}
        return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def tensors_of(plan: Plan) -> Iterator[tuple[str, NewBlock, BlockTensor]]:
    """Every tensor of a plan's new blocks: its name in a pack, its block, and what it is."""
    for block in plan.new_blocks:
        for tensor in plan.tensors_of(block.donor):
            yield f"{block.id}.{tensor.tail}", block, tensor


def dtypes_of(plan: Plan) -> tuple[str, ...]:
    """The precisions of a plan's new blocks."""
    return tuple(sorted({tensor.dtype for _, _, tensor in tensors_of(plan)}))


Names = tuple[str, ...]
"""The packs that are on; none is the base."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a candidate is chosen."""

    prompt_tokens: int = 128
    """The prompt is scored on its last so many tokens at most."""
    evidence: float = 5.0
    """Nats, over all scored tokens together, by which a candidate with packs has to beat the base, or the base it is:
    as odds 148 to one. So a short prompt needs a clearer difference at each token than a long one."""
    together: bool = False
    """Whether all packs at once are a candidate too: stacked packs disturb one another, and were chosen wrongly."""

    def __post_init__(self) -> None:
        check(self.prompt_tokens >= 2, "prompt_tokens", self.prompt_tokens, "2 or more")
        check(self.evidence >= 0, "evidence", self.evidence, "0 or more")


def name_of(names: Names) -> str:
    """A set of packs in one word: `base`, `code`, `code+law`."""
    return "+".join(names) or "base"
