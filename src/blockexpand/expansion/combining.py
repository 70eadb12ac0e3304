"""Several plans for one base as one plan: the new blocks of all of them, in a stated order.

In: a base and plans for it, each with its own new blocks. Out: one plan, and for each block of each plan its id
there. Refused: plans whose new blocks start in different ways, and stacks that the config cannot state.

The rule: on each old block, the plans' new blocks stand in the order of the plans given, each plan's own in their own
order. Blocks know the old block they stand on and their donor, so any plans for one base fit together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.checkpoint import Checkpoint
from blockexpand.errors import PlanError
from blockexpand.expansion.costing import cost
from blockexpand.expansion.placing import Insertion
from blockexpand.expansion.plans import NewBlock, Placement, Plan, number
from blockexpand.expansion.rewriting import Rewrite, rewrite
from blockexpand.expansion.survey import started, survey
from blockexpand.families import Family


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Several plans as one."""

    plan: Plan
    """With all new blocks."""
    ids: tuple[dict[str, str], ...]
    """For each of the plans, the id in `plan` of each of its blocks by its own id."""


def combine(base: Checkpoint, plans: Sequence[Plan]) -> Combined:
    """One plan of several for the same base, in the order in which they stand on one another; a single one as it is.

    Raises:
        PlanError: they start new blocks in different ways, or the base's config cannot state the stack.
    """
    assert plans, "there is a plan to combine"
    _check_inits(plans)
    blocks, ids = _merged(plans)
    if len(plans) == 1:
        return Combined(plan=plans[0], ids=ids)
    facts = survey(base)
    sources = _sources(facts.depth, blocks)
    rewritten = rewrite(facts.family, base.config, sources)
    kinds = started(facts.kinds, plans[0].init)
    plan = dataclasses.replace(
        _joint(plans[0], blocks, rewritten),
        block=kinds[0].tensors if len(kinds) == 1 else (),
        kinds=kinds if len(kinds) > 1 else (),
        cost=cost(facts, base.config, sources, tuple(block.position for block in blocks)),
    )
    return Combined(plan=plan, ids=ids)


def combine_in_memory(family: Family, config: dict[str, Any], plans: Sequence[Plan]) -> Combined:
    """The same for a base in memory, whose config is `config`. What it costs is not told: the plan is not to be saved.

    Raises:
        PlanError: the plans start new blocks in different ways, or the config cannot state the stack.
    """
    _check_inits(plans)
    blocks, ids = _merged(plans)
    if len(plans) == 1:
        return Combined(plan=plans[0], ids=ids)
    rewritten = rewrite(family, config, _sources(plans[0].base.num_blocks, blocks))
    return Combined(plan=_joint(plans[0], blocks, rewritten), ids=ids)


def _joint(first: Plan, blocks: tuple[NewBlock, ...], rewritten: Rewrite) -> Plan:
    """The first plan with other blocks."""
    return dataclasses.replace(
        first,
        placement=Placement(kind="explicit", per_group=1, group_sizes=()),
        new_blocks=blocks,
        config_changes=rewritten.changes,
        config_before=rewritten.before,
        notes=rewritten.notes,
    )


def _sources(depth: int, blocks: Sequence[NewBlock]) -> list[int]:
    """For each block of the new stack, the old block whose kind it has."""
    sources: list[int] = []
    for old in range(-1, depth):
        sources += [old] if old >= 0 else []
        sources += [block.donor for block in blocks if block.after == old]
    return sources


def _merged(plans: Sequence[Plan]) -> tuple[tuple[NewBlock, ...], tuple[dict[str, str], ...]]:
    """All new blocks from the bottom up, and each one's id there by plan and own id."""
    ordered = sorted(
        ((block, at) for at, plan in enumerate(plans) for block in plan.new_blocks), key=lambda pair: pair[0].after
    )
    blocks = number(Insertion(after=block.after, donor=block.donor) for block, _ in ordered)
    ids: tuple[dict[str, str], ...] = tuple({} for _ in plans)
    for (block, at), combined in zip(ordered, blocks, strict=True):
        ids[at][block.id] = combined.id
    return blocks, ids


def _check_inits(plans: Sequence[Plan]) -> None:
    inits = sorted({plan.init for plan in plans})
    if len(inits) > 1:
        raise PlanError(
            f"new blocks that start with init {' and '.join(map(repr, inits))} cannot be in one plan; expected one; "
            "leave one of them out"
        )
