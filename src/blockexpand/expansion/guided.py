"""Where new blocks go by measured importance: the scores, and the choice they lead to.

In: for each old block what skipping it does to general text, and how many new blocks are wanted. Out: the old blocks
they are stacked on, one each: of all sets that the config can state, the one whose scores sum to the least. Refused:
more blocks than places, requests for positions or groups, scores of another model. Pure arithmetic: the measuring
is the room `guidance`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from blockexpand.errors import PlanError
from blockexpand.expansion.formulas import Kinds
from blockexpand.expansion.placing import Insertion, Placed, check_count
from blockexpand.records import check

Measure = Literal["kl", "loss", "cosine"]
"""By what blocks are ranked; each picks the blocks that general text misses least."""
MEASURE_WORDS = {
    "kl": "KL to the whole model when the block is skipped",
    "loss": "rise of the loss when the block is skipped",
    "cosine": "1 - cosine between the block's input and output",
}


@dataclass(frozen=True, kw_only=True)
class BlockScore:
    """What general text says of one old block."""

    kl: float
    """KL of the model without the block to the whole model, nats per token."""
    loss_rise: float
    """Loss without the block minus the whole model's, nats per token."""
    cosine: float
    """Mean cosine between the hidden states that enter the block and those that leave it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(math.isfinite(value), name, value, "a finite number")

    def harm(self, measure: Measure) -> float:
        """How much is lost without the block: the less, the better a place for a new one."""
        return {"kl": self.kl, "loss": self.loss_rise, "cosine": 1 - self.cosine}[measure]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Measured importance, as it is kept in the plan."""

    measure: Measure
    """The measure that chose."""
    scores: tuple[BlockScore, ...]
    """One for each block of the base, from the bottom up."""
    base_loss: float
    """The whole model's loss on the same text, nats per token."""
    num_tokens: int
    """Tokens whose prediction counted."""
    row_tokens: int
    """The length of the rows they stood in."""
    tokens_digest: str
    """The digest of the tokens read: the same text through the same tokenizer has the same."""
    texts: tuple[str, ...]
    """Where they came from, as it was given; for people, never compared."""
    dtype: str
    """The precision the model ran in."""
    device: str
    """Where it ran."""

    def __post_init__(self) -> None:
        check(len(self.scores) > 0, "scores", list(self.scores), "one for each block")
        check(self.num_tokens >= 0, "num_tokens", self.num_tokens, "0 or more")

    @property
    def harms(self) -> tuple[float, ...]:
        """What each block is ranked by."""
        return tuple(score.harm(self.measure) for score in self.scores)

    @property
    def words(self) -> str:
        """The rule in a line."""
        return f"guided by {MEASURE_WORDS[self.measure]} ({self.num_tokens:,} tokens): on top of the least missed"


def place_guided(guidance: Guidance, blocks: int, stated: Sequence[Kinds] = ()) -> tuple[Placed, tuple[str, ...]]:
    """The new blocks and what is to be said of their places.

    Args:
        guidance: the scores.
        blocks: how many new blocks, as `check_guided` takes it.
        stated: for each rule by which the config states kinds of block, the kinds and the stacks it could state.
    """
    chosen, free = choose(guidance.harms, blocks, stated), choose(guidance.harms, blocks)
    assert free is not None, "without constraints any set is allowed"
    if chosen is None:
        # Any such set: the caller finds that it cannot be stated, and names placements that can.
        chosen = free
    notes = ()
    if chosen != free:
        notes = (
            f"of the sets of {blocks} places that config.json can state, after {_listed(chosen)} has the lowest sum of "
            f"scores; the {blocks} least missed blocks overall are {_listed(free)}",
        )
    return Placed(kind="guided", insertions=tuple(Insertion(after=i, donor=i) for i in chosen)), notes


def check_guided(
    guidance: Guidance, depth: int, blocks: int | None, others: tuple[Sequence[int | Insertion] | None, int]
) -> int:
    """How many blocks a guided placement is asked for; `others` are `after` and `per_group`, which it does not take.

    Raises:
        PlanError: the request contradicts itself, or does not fit a model of `depth` blocks.
    """
    after, per_group = others
    if after is not None:
        raise PlanError(
            f"placement 'guided' and a list of positions ({', '.join(map(str, after))}) given; expected one of the "
            "two; leave one out"
        )
    if per_group != 1:
        raise PlanError(
            f"per_group {per_group} with placement 'guided'; expected it only with 'interleaved', where there are "
            "groups; leave it out"
        )
    if blocks is None:
        raise PlanError(
            f"placement 'guided' without a number of new blocks; expected one; e.g. blocks={max(1, depth // 4)}"
        )
    check_count("blocks", blocks)
    if blocks > depth:
        raise PlanError(
            f"cannot place {blocks} new blocks by importance: the model has {depth} blocks, each a place for one; "
            f"use blocks={depth} or fewer"
        )
    if len(guidance.scores) != depth:
        raise PlanError(
            f"scores of {len(guidance.scores)} blocks for a model of {depth}; expected one for each; measure this model"
        )
    return blocks


def _listed(blocks: Sequence[int]) -> str:
    return ", ".join(map(str, blocks))


def choose(harms: Sequence[float], blocks: int, stated: Sequence[Kinds] = ()) -> tuple[int, ...] | None:
    """The places whose harms sum to the least, lowest first among equals; None when no set can be stated.

    Sums are exact, so that neither rounding nor the order of adding decides.
    """
    exact = [Fraction(harm) for harm in harms]
    # Each rule alone first: most of the stacks it could state cannot be made from this one by adding copies.
    possible = [
        [(rule.kinds, stack) for stack in rule.stacks if _cheapest(exact, blocks, [(rule.kinds, stack)]) is not None]
        for rule in stated
    ]
    found = [_cheapest(exact, blocks, pairs) for pairs in itertools.product(*possible)]
    return min((best for best in found if best is not None), default=(Fraction(0), None))[1]


def _cheapest(
    harms: Sequence[Fraction], blocks: int, pairs: Sequence[tuple[Sequence[bool], Sequence[bool]]]
) -> tuple[Fraction, tuple[int, ...]] | None:
    """The least sum and its places, where each pair is the old blocks' kinds and those of the whole new stack.

    Walks up the old stack, and keeps for each number of copies made so far the best way to have made them.
    """
    ways: dict[int, tuple[Fraction, tuple[int, ...]]] = {0: (Fraction(0), ())}
    for old, harm in enumerate(harms):
        further: dict[int, tuple[Fraction, tuple[int, ...]]] = {}
        for copies, (total, places) in ways.items():
            at = old + copies
            if not all(stack[at] == kinds[old] for kinds, stack in pairs):
                continue
            further[copies] = min(further.get(copies, (total, places)), (total, places))
            if copies < blocks and all(stack[at + 1] == kinds[old] for kinds, stack in pairs):
                with_copy = (total + harm, (*places, old))
                further[copies + 1] = min(further.get(copies + 1, with_copy), with_copy)
        ways = further
    return ways.get(blocks)
