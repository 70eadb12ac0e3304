"""Several plans for one base as one plan: the new blocks of all of them, in a stated order.

In: a base and plans for it, each with its own new blocks. Out: one plan, and for each block of each plan its id
there. Refused: plans whose new blocks start in different ways, and stacks that the config cannot state.

The rule: on each old block, the plans' new blocks stand in the order of the plans given, each plan's own in their own
order. Blocks know the old block they stand on and their donor, so any plans for one base fit together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockexpand.checkpoint import Checkpoint
from blockexpand.errors import PlanError
from blockexpand.planning.costing import cost
from blockexpand.planning.placing import Insertion
from blockexpand.planning.plans import Placement, Plan, number
from blockexpand.planning.rewriting import rewrite
from blockexpand.planning.survey import started, survey


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
    inits = sorted({plan.init for plan in plans})
    if len(inits) > 1:
        raise PlanError(
            f"new blocks that start with init {' and '.join(map(repr, inits))} cannot be in one plan; expected one; "
            "leave one of them out"
        )
    ordered = sorted(
        ((block, at) for at, plan in enumerate(plans) for block in plan.new_blocks), key=lambda pair: pair[0].after
    )
    blocks = number(Insertion(after=block.after, donor=block.donor) for block, _ in ordered)
    ids: tuple[dict[str, str], ...] = tuple({} for _ in plans)
    for (block, at), combined in zip(ordered, blocks, strict=True):
        ids[at][block.id] = combined.id
    if len(plans) == 1:
        return Combined(plan=plans[0], ids=ids)
    facts = survey(base)
    sources: list[int] = []
    for old in range(-1, facts.depth):
        sources += [old] if old >= 0 else []
        sources += [block.donor for block in blocks if block.after == old]
    rewritten = rewrite(facts.family, base.config, sources)
    kinds = started(facts.kinds, plans[0].init)
    plan = Plan(
        base=plans[0].base,
        placement=Placement(kind="explicit", per_group=1, group_sizes=()),
        new_blocks=blocks,
        block=kinds[0].tensors if len(kinds) == 1 else (),
        kinds=kinds if len(kinds) > 1 else (),
        init=plans[0].init,
        config_changes=rewritten.changes,
        config_before=rewritten.before,
        notes=rewritten.notes,
        cost=cost(facts, base.config, sources, tuple(block.position for block in blocks)),
    )
    return Combined(plan=plan, ids=ids)
