"""The runs that a comparison asks for, and where they are: grown bases and runs that several comparisons share.

Every arm gets the same domain tokens in the same order, the same general rows, the same retention, the same steering
sample and the same number of learning rates to try. Folders that are shared are named by contents (of the base, of the
settings and texts), never by a path. Two comparisons that want the same run at once wait for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from blockexpand import expansion
from blockexpand.evaluation.measurement import model_digest
from blockexpand.records.comparison import ArmRecipe, CompareRecipe, PlanRecipe
from blockexpand.records.plan import Insertion, Plan
from blockexpand.records.run import NO_RETENTION, TrainSettings
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.training.run import run_digest

_DIGITS = 16
"""Of a digest that name a folder: 64 bits."""


def grown(recipe: CompareRecipe, folder: Path) -> dict[str, Path]:
    """The checkpoint of each arm, by its name; expanded ones are made here.

    Raises:
        PlanError: an arm's plan does not fit the base.
    """
    base = model_digest(Path(recipe.base)).removeprefix("sha256:")[:_DIGITS]
    models = {}
    for arm in recipe.arms:
        if arm.plan is None:
            models[arm.name] = Path(recipe.base)
            continue
        wanted = planned(recipe, arm.plan)
        models[arm.name] = folder / "expanded" / f"{base}-{_name(wanted)}"
        with alone(models[arm.name]):
            if not (models[arm.name] / RECORD_NAME).is_file():
                expansion.expand(recipe.base, models[arm.name], wanted)
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


def _name(wanted: Plan) -> str:
    """A folder for this plan and no other of the same base: where it grows, of whom, and how."""
    places = [str(b.after) if b.donor == max(b.after, 0) else f"{b.after}of{b.donor}" for b in wanted.new_blocks]
    return "-".join(places) + ("" if wanted.init == "identity" else f"-{wanted.init}")


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


def in_cache(plan: TrialPlan, runs: Path) -> TrialPlan:
    """The trial, run in a folder of `runs` that its settings name."""
    name = run_digest(plan.settings).removeprefix("sha256:")[:_DIGITS]
    return dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, out=str(runs / name)))


def bring(plan: TrialPlan) -> None:
    """Give the comparison what was run elsewhere, unless it has it."""
    made = Path(plan.settings.out)
    if made == plan.run or (plan.run / RECORD_NAME).is_file():
        return
    with staged_folder(plan.run) as staged:
        for path in sorted(made.rglob("*")):
            place = staged / path.relative_to(made)
            if path.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                _linked(path, place)


def _linked(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # another file system, or one without links
        shutil.copy2(path, place)


@contextlib.contextmanager
def alone(folder: Path) -> Generator[None]:
    """Hold a folder-to-be against other processes that would make it too; waits for them."""
    locks = folder.parent.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with open(locks / folder.name, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
