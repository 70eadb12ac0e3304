"""The checkpoint that each arm of a comparison starts from: the base, or the base grown by the arm's plan.

In: a recipe and a folder. Out: the expanded checkpoints in `expanded/`, each made once. Refused: what planning refuses.
"""

from __future__ import annotations

from pathlib import Path

from blockexpand import expansion
from blockexpand.comparison.caching import alone
from blockexpand.comparison.recipe import CompareRecipe, PlanRecipe
from blockexpand.expansion import expand
from blockexpand.records.plan import Insertion, Plan
from blockexpand.staging import RECORD_NAME


def grown(recipe: CompareRecipe, folder: Path) -> dict[str, Path]:
    """The checkpoint of each arm, by its name; expanded ones are made here.

    Raises:
        PlanError: an arm's plan does not fit the base.
    """
    models = {}
    for arm in recipe.arms:
        if arm.plan is None:
            models[arm.name] = Path(recipe.base)
            continue
        wanted = planned(recipe, arm.plan)
        models[arm.name] = folder / "expanded" / _name(wanted)
        with alone(models[arm.name]):
            if not (models[arm.name] / RECORD_NAME).is_file():
                expand(recipe.base, models[arm.name], wanted)
    return models


def planned(recipe: CompareRecipe, wish: PlanRecipe) -> Plan:
    """The plan that an arm asks for."""
    if wish.repeat is not None:
        first, end = wish.repeat
        copies = [Insertion(after=end - 1, donor=donor) for donor in range(first, end)]
        return expansion.plan(recipe.base, after=copies, init=wish.init)
    return expansion.plan(
        recipe.base,
        wish.blocks,
        placement=wish.placement,
        after=wish.after,
        per_group=wish.per_group,
        init=wish.init,
    )


def _name(plan: Plan) -> str:
    """A folder for this plan and no other of the same base: where it grows, of whom, and how."""
    places = [str(b.after) if b.donor == max(b.after, 0) else f"{b.after}of{b.donor}" for b in plan.new_blocks]
    return "-".join(places) + ("" if plan.init == "identity" else f"-{plan.init}")
