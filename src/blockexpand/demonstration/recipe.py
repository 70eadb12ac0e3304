"""The demo's settings: `demo.yaml` beside this file, strictly read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blockexpand.corpus import PrepareRecipe, Source, SplitRecipe
from blockexpand.demonstration.paths import RECIPE
from blockexpand.records import check, from_plain, read_yaml
from blockexpand.records.comparison import ArmRecipe
from blockexpand.records.run import ArmSettings, OptimizerSettings, RetentionSettings, ScheduleSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructionCounts:
    """How many instructions the project makes."""

    num_train: int
    num_test: int

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.num_train > 0, "num_train", self.num_train, "more than 0")
        check(self.num_test > 0, "num_test", self.num_test, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructRecipe:
    """The instruct stage."""

    arm: ArmSettings
    domain_tokens: int
    rows_per_step: int
    optimizer: OptimizerSettings
    retention: RetentionSettings
    schedule: ScheduleSettings = dataclasses.field(default_factory=ScheduleSettings)

    def settings(self) -> dict[str, Any]:
        """As arguments of `TrainSettings`."""
        return {**vars(self), "measure_every_steps": 20, "checkpoint_every_steps": 100}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FullDemo:
    """What `--full` does more of."""

    seeds: tuple[int, ...]
    lrs: dict[str, tuple[float, ...]]
    """The learning rates tried, by the arm's name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """The whole demo."""

    new_blocks: int
    domain: PrepareRecipe
    general: PrepareRecipe
    instructions: InstructionCounts
    domain_tokens: int
    """For every arm of the comparison."""
    rows_per_step: int
    validation_rows: int
    """Rows of each text that a run steers by."""
    retention: RetentionSettings
    measure_every_steps: int
    seeds: tuple[int, ...]
    arms: tuple[ArmRecipe, ...]
    instruct: InstructRecipe
    full: FullDemo

    def __post_init__(self) -> None:
        """Check that `--full` speaks of these arms."""
        names = [arm.name for arm in self.arms]
        check(sorted(self.full.lrs) == sorted(names), "full.lrs", list(self.full.lrs), f"an entry for each of {names}")

    def at_length(self) -> DemoRecipe:
        """The recipe of `--full`."""
        arms = tuple(dataclasses.replace(arm, lrs=self.full.lrs[arm.name]) for arm in self.arms)
        return dataclasses.replace(self, seeds=self.full.seeds, arms=arms)

    def chats(self, path: Path) -> PrepareRecipe:
        """How the instructions are packed."""
        return PrepareRecipe(
            sources=(Source(path=str(path)),),
            row_tokens=self.domain.row_tokens,
            splits={"train": SplitRecipe(share=0.95), "validation": SplitRecipe(share=0.05)},
        )


def load_demo(full: bool) -> DemoRecipe:
    """The demo's recipe, short or full."""
    recipe = from_plain(DemoRecipe, read_yaml(RECIPE), str(RECIPE))
    return recipe.at_length() if full else recipe
