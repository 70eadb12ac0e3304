"""The settings of a comparison, and the runs they ask for.

Every arm gets the same domain tokens in the same order, the same general rows, the same retention, the
same steering sample and the same number of learning rates to try. Refused: arms that would not be equal,
unless one says of itself that it is a reference outside the comparison.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from blockexpand.errors import ComparisonError
from blockexpand.records import WRITTEN_WHEN_SET, check
from blockexpand.records.plan import Init
from blockexpand.records.run import (
    NO_RETENTION,
    ArmSettings,
    BlocksArm,
    CustomArm,
    DataSettings,
    OptimizerSettings,
    RetentionSettings,
    ScheduleSettings,
    TrainSettings,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRecipe:
    """Where the arm `blocks`, or a custom one, grows the base, and how new blocks start."""

    blocks: int | None = None
    placement: Literal["interleaved", "prefix", "suffix"] = "interleaved"
    per_group: int = 1
    after: tuple[int, ...] | None = None
    init: Init = dataclasses.field(default="identity", metadata=WRITTEN_WHEN_SET)
    """identity, or as references copy or random, which change the model before its first step."""
    repeat: tuple[int, int] | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Instead of `blocks`, depth up-scaling: the old blocks from the first number up to the second are there twice, the
    copies on top of them. Of 32 blocks Yi-9B repeats [12, 28] and SOLAR [8, 24]."""

    def __post_init__(self) -> None:
        """Check that the wishes are one wish."""
        wishes = [name for name in ("blocks", "after", "repeat") if vars(self)[name] is not None]
        check(len(wishes) == 1, "plan", wishes, "exactly one of blocks, after and repeat")
        first, end = self.repeat or (0, 1)
        check(0 <= first < end, "repeat", self.repeat, "two numbers, the first block and the one after the last")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmRecipe:
    """One method."""

    name: str
    arm: ArmSettings
    lrs: tuple[float, ...]
    """The learning rates tried; the best inside the budget, by the steering sample, is the arm's result."""
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    """Everything but its `lr`, which `lrs` sets."""
    plan: PlanRecipe | None = None
    """For the arm `blocks`, and for custom ones that want a deeper checkpoint."""
    unrestricted: bool = False
    """A reference outside the comparison: domain text only, no retention, no budget."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(len(self.lrs) > 0, "lrs", self.lrs, "at least one learning rate")
        check(all(lr > 0 for lr in self.lrs), "lrs", self.lrs, "numbers above 0")
        grows = isinstance(self.arm, BlocksArm) or (isinstance(self.arm, CustomArm) and self.plan is not None)
        check(
            grows == (self.plan is not None),
            "plan",
            self.plan,
            "a plan for `blocks`, if need be for a custom arm, and none for others",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExamineSettings:
    """What is looked at in the run of each arm's chosen learning rate and first seed, beside its losses."""

    num_prompts: int = 48
    """Beginnings of test documents, of each text, that are continued greedily: for the token shift."""
    prompt_tokens: int = 32
    new_tokens: int = 32
    num_shown: int = 3
    """Of each text's, as many continuations are kept to be read side by side."""
    ablation_rows: int = 32
    """Rows of each text's test split on which each new block is left out; 0 for none."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name in ("num_prompts", "prompt_tokens", "new_tokens"):
            check(vars(self)[name] > 0, name, vars(self)[name], "more than 0")
        for name in ("num_shown", "ablation_rows"):
            check(vars(self)[name] >= 0, name, vars(self)[name], "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareRecipe:
    """A comparison."""

    base: str
    """The folder of the base checkpoint."""
    out: str
    data: DataSettings
    domain_tokens: int
    arms: tuple[ArmRecipe, ...]
    seeds: tuple[int, ...] = (0,)
    rows_per_step: int = 16
    rows_per_pass: int = 16
    schedule: ScheduleSettings = dataclasses.field(default_factory=ScheduleSettings)
    retention: RetentionSettings = dataclasses.field(default_factory=RetentionSettings)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    measure_every_steps: int = 25
    test_split: str = "test"
    """Of both corpora: what is reported, and never steered by."""
    runs: str | None = None
    """A folder of runs and expanded models that several comparisons share; the comparison's own when None."""
    examine: ExamineSettings | None = None
    """What else to look at in each arm's chosen run; None for nothing."""

    def __post_init__(self) -> None:
        """Check that the arms are equal."""
        names = [arm.name for arm in self.arms]
        check(len(names) > 0, "arms", names, "at least one arm")
        check(len(set(names)) == len(names), "arms", names, "names that differ")
        check(
            len(set(self.seeds)) == len(self.seeds) > 0,
            "seeds",
            self.seeds,
            "seeds that differ, at least one",
        )
        trials = {len(arm.lrs) for arm in self.arms if not arm.unrestricted}
        check(len(trials) <= 1, "arms", sorted(trials), "the same number of learning rates for every arm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """One run of a comparison, before it is run."""

    arm: str
    lr: float
    seed: int
    settings: TrainSettings
    unrestricted: bool
    run: Path
    """Where the comparison has the run; `settings.out` is where it is trained."""


def trial_plans(recipe: CompareRecipe, models: dict[str, Path], runs: Path) -> list[TrialPlan]:
    """The runs of a comparison: arms by learning rates by seeds.

    Args:
        recipe: The comparison.
        models: The checkpoint each arm starts from, by the arm's name.
        runs: The folder that holds the run folders.
    """
    plans = []
    for arm in recipe.arms:
        for lr in arm.lrs:
            for seed in recipe.seeds:
                settings = _settings(recipe, arm, lr, seed)
                out = runs / f"{_slug(arm.name)}-lr{lr:g}-seed{seed}"
                settings = dataclasses.replace(settings, model=str(models[arm.name]), out=str(out))
                free = arm.unrestricted
                plans.append(TrialPlan(arm=arm.name, lr=lr, seed=seed, settings=settings, unrestricted=free, run=out))
    _check_equal(plans)
    return plans


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


def _settings(recipe: CompareRecipe, arm: ArmRecipe, lr: float, seed: int) -> TrainSettings:
    retention = recipe.retention
    rows = recipe.rows_per_step
    if arm.unrestricted:
        # Domain text only: the same domain rows a step, none of the general ones, and no budget.
        rows -= round(retention.replay * rows)
        retention = NO_RETENTION
    return TrainSettings(
        model="",
        out="",
        arm=arm.arm,
        data=recipe.data,
        domain_tokens=recipe.domain_tokens,
        rows_per_step=rows,
        rows_per_pass=min(rows, recipe.rows_per_pass),
        optimizer=dataclasses.replace(arm.optimizer, lr=lr),
        schedule=recipe.schedule,
        retention=retention,
        precision=recipe.precision,
        measure_every_steps=recipe.measure_every_steps,
        checkpoint_every_steps=10**9,  # the runs are short; an interrupted one saves itself
        seed=seed,
    )


def _check_equal(plans: list[TrialPlan]) -> None:
    """Refuse a comparison whose arms differ in anything but the method and its optimiser."""
    fields = (
        "data",
        "domain_tokens",
        "rows_per_step",
        "schedule",
        "retention",
        "precision",
        "measure_every_steps",
    )
    compared = [plan for plan in plans if not plan.unrestricted]
    for plan in compared:
        for field in fields:
            ours, theirs = vars(plan.settings)[field], vars(compared[0].settings)[field]
            if ours != theirs:
                raise ComparisonError(
                    f"the arms {compared[0].arm!r} and {plan.arm!r} are not equal: {field} is {theirs} and {ours}; "
                    "give both the same, or mark one `unrestricted`"
                )
