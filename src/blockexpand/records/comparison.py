"""A comparison as a record: the recipe it ran by, and what each run came to.

In: the folder of a comparison. Out: frozen values of `comparison.json`. Nothing is computed here
(comparison/summary.py does), and neither torch nor transformers is imported.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from blockexpand.errors import ComparisonError
from blockexpand.records.codec import WRITTEN_WHEN_SET, check, read_record
from blockexpand.records.evaluation import HeldOut
from blockexpand.records.intervals import Interval
from blockexpand.records.plan import Init
from blockexpand.records.run import (
    ArmSettings,
    BlocksArm,
    CustomArm,
    DataSettings,
    Measurement,
    OptimizerSettings,
    RetentionSettings,
    ScheduleSettings,
)

COMPARISON_NAME = "comparison.json"

# --- the recipe ------------------------------------------------------------------------------------------


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
        wishes = [name for name in ("blocks", "after", "repeat") if getattr(self, name) is not None]
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


# --- what came of it -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One finished run."""

    arm: str
    lr: float
    seed: int
    run: str
    """The run's folder, relative to the comparison's."""
    steering: Measurement
    """The shipped checkpoint's losses on the steering sample, by which trials are chosen."""
    curve: tuple[Measurement, ...]
    """Every measurement of the run on the steering sample, the base's first."""
    held_out: dict[str, HeldOut]
    """The shipped checkpoint on the test splits, `general` and `domain`."""
    num_trainable_parameters: int
    tokens_per_second: float
    peak_memory_bytes: int
    train_seconds: float
    cpu_seconds: float
    """Processor time of its steps, all threads together."""
    load: float | None
    """Other processes' share of the machine while it trained: mean number of runnable ones; None: not known."""
    kept_nothing: bool
    """Whether nothing that was learnt met the budget, so that the base itself was measured."""
    training_loss: float | None
    """Cross-entropy on the domain rows of the last quarter of its steps, before each learnt from them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """A figure over the seeds, or of one seed with an interval over documents."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmResult:
    """One method at its chosen learning rate."""

    name: str
    unrestricted: bool
    lr: float
    """Chosen by the steering sample: the lowest mean domain loss over the seeds, inside the budget."""
    trials: tuple[Trial, ...]
    """The chosen learning rate's, one a seed."""
    general_loss: float
    domain_loss: float
    forgetting: Summary
    """General test loss now minus the base's, as a share of the base's (0.01 = 1 % worse)."""
    gain: Summary
    """The base's domain test loss minus now, in nats per token."""
    gain_over_reference: float | None
    """The gain as a share of the unrestricted reference's; None without one."""
    frontier: tuple[Measurement, ...]
    """The measured checkpoints of all trials that no other one beats in both losses."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two arms on the same test documents: ours minus theirs, in nats per token."""

    ours: str
    theirs: str
    domain: Interval
    general: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A finished comparison; saved as `comparison.json`."""

    FORMAT: ClassVar[str] = "blockexpand.comparison"
    FORMAT_VERSION: ClassVar[int] = 1

    recipe: CompareRecipe
    base: dict[str, HeldOut]
    """The base on the test splits."""
    arms: tuple[ArmResult, ...]
    contrasts: tuple[Contrast, ...]
    """The first arm against each other one."""
    trials: tuple[Trial, ...]

    @property
    def kept_nothing(self) -> bool:
        """Whether every arm that had a budget shipped the base untouched: then there is nothing to compare."""
        bound = [trial for arm in self.arms if not arm.unrestricted for trial in arm.trials]
        return bool(bound) and all(trial.kept_nothing for trial in bound)


def read_comparison(folder: str | Path) -> Comparison:
    """The comparison in a folder that `compare` wrote.

    Raises:
        ComparisonError: there is none.
    """
    path = Path(folder) / COMPARISON_NAME
    if not path.is_file():
        raise ComparisonError(f"{folder} holds no comparison.json; run compare first, or give its `out` folder")
    return read_record(Comparison, path)
