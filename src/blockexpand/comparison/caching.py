"""Runs that several comparisons share: found by the digest of their settings, trained once.

In: planned trials and a folder. Out: the same trials, each in a folder named by its digest; a comparison's own folder
then gets what was made, by links where the file system has them. Refused: nothing. Two comparisons that want the same
run at once wait for each other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Generator
from pathlib import Path

from blockexpand.comparison.recipe import TrialPlan
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.training.run import run_digest

_DIGITS = 16
"""Of a digest that name a run: 64 bits."""


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
