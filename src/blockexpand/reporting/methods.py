"""The arms of a comparison in words a reader knows, and the mark by which each is found in every figure.

In: a recipe. Out: a `Method` an arm: its name, what trains, its colour and marker. Names that two arms would
share are told apart by the recipe's own names.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from blockexpand.records.comparison import ArmRecipe, CompareRecipe, PlanRecipe
from blockexpand.records.run import BlocksArm, CustomArm, FullArm, LoraArm, OldBlocksArm
from blockexpand.reporting import formats

NUM_COLOURS = 7
MARKERS = ("o", "s", "^", "D", "v", "P", "p", "*")
"""Matplotlib's names: who sees no colour tells the methods by these. One more than colours, so that the eighth
method, which has the first one's colour, has another marker."""
REFERENCE_MARKER = "X"


@dataclass(frozen=True, kw_only=True)
class Method:
    """How one arm is shown."""

    arm: str
    """Its name in the recipe."""
    name: str
    """Its name on the page."""
    trains: str
    """What of the model it changes."""
    colour: int
    """Its place in the palette; -1 for references, which are grey."""
    marker: str

    @property
    def variable(self) -> str:
        """The page's variable that holds its colour."""
        return "--reference" if self.colour < 0 else f"--series-{self.colour}"

    @property
    def inside(self) -> str:
        """The name within a sentence."""
        return self.name if self.name.startswith("LoRA") else self.name[0].lower() + self.name[1:]


def methods_of(recipe: CompareRecipe) -> dict[str, Method]:
    """The methods by their arms' names, in the recipe's order."""
    names = {arm.name: _name(arm) for arm in recipe.arms}
    shared = {name for name, times in Counter(names.values()).items() if times > 1}
    methods = {}
    compared = 0
    for arm in recipe.arms:
        name = names[arm.name]
        methods[arm.name] = Method(
            arm=arm.name,
            name=f"{name} ({arm.name})" if name in shared else name,
            trains=trains_of(arm),
            colour=-1 if arm.unrestricted else compared % NUM_COLOURS,
            marker=REFERENCE_MARKER if arm.unrestricted else MARKERS[compared % len(MARKERS)],
        )
        compared += not arm.unrestricted
    return methods


def _name(arm: ArmRecipe) -> str:
    kinds: dict[type, str] = {
        BlocksArm: "Block expansion",
        OldBlocksArm: "Training old blocks",
        FullArm: "Full fine-tuning",
        LoraArm: "LoRA",
    }
    kind = arm.arm.name if isinstance(arm.arm, CustomArm) else kinds[type(arm.arm)]
    return kind + (", unrestricted" if arm.unrestricted else "")


def trains_of(arm: ArmRecipe) -> str:
    """What of the model the arm changes, in words."""
    settings = arm.arm
    if isinstance(settings, OldBlocksArm):
        return f"blocks {', '.join(map(str, settings.blocks))} of the base"
    if isinstance(settings, FullArm):
        return "every parameter"
    if isinstance(settings, LoraArm):
        if settings.rank is not None:
            return f"low-rank factors, rank {settings.rank}"
        size = formats.format_scaled(settings.trainable_parameters or 0)
        return f"low-rank factors, about {size} parameters"
    if isinstance(settings, CustomArm):
        told = ", ".join(f"{key} {value}" for key, value in settings.options.items())
        return f"what the arm {settings.name} trains{f' ({told})' if told else ''}"
    assert arm.plan is not None, f"the arm {arm.name} has no plan"
    return _grown(arm.plan)


def _grown(plan: PlanRecipe) -> str:
    start = "" if plan.init == "identity" else f", started as {_STARTS[plan.init]}"
    if plan.repeat is not None:
        first, end = plan.repeat
        return f"blocks {first} to {end - 1} a second time{start}"
    if plan.after is not None:
        return f"{len(plan.after)} new blocks, on {', '.join(map(str, plan.after))}{start}"
    blocks = "1 new block" if plan.blocks == 1 else f"{plan.blocks} new blocks"
    return f"{blocks}, {plan.placement}{start}"


_STARTS = {"copy": "plain copies", "random": "random blocks"}
