"""A study's settings: a question, a base, two texts, and what is to be compared.

In: the name of a study, or a YAML file, and overrides. Out: a `StudyRecipe`. Refused: an unknown
study, unknown keys, a study of two kinds or of none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockexpand.errors import UsageError, nearest
from blockexpand.records import apply_overrides, check, from_plain, read_yaml
from blockexpand.records.run import ArmSettings, BlocksArm, OptimizerSettings, RetentionSettings
from studies.token_shift import ShiftRecipe

_RECIPES = Path(__file__).parent / "recipes"
TINY = "tiny"
"""In the place of a base's folder: the tiny base that ships with us."""
DEMO = "demo"
"""In the place of a prepared folder: the demo's Python or English, prepared when it is first asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """What is learnt, and what is not to be forgotten."""

    domain: str = DEMO
    """A prepared folder, or `demo`."""
    general: str = DEMO
    """A prepared folder with the splits replay, validation and test, or `demo`."""
    validation_rows: int = 16
    test_tokens: int = 16_000
    """Of each of the demo's texts, in its test split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodRecipe:
    """One way of learning a sequence of tasks."""

    name: str
    arm: ArmSettings
    lr: float
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    """Everything but its `lr`."""
    blocks: int | None = None
    """For the arm `blocks`: how many new ones, interleaved."""
    per_task: bool = False
    """For the arm `blocks`: new blocks for each task, all grown on the base."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(self.lr > 0, "lr", self.lr, "more than 0")
        is_blocks = isinstance(self.arm, BlocksArm)
        check(is_blocks == (self.blocks is not None), "blocks", self.blocks, "a number for `blocks`, and for no other")
        check(is_blocks or not self.per_task, "per_task", self.per_task, "false, but for the arm `blocks`")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceRecipe:
    """Tasks learnt one after another (TRACE in kind)."""

    tasks: tuple[str, ...]
    """In the order in which they are learnt."""
    num_train: int
    """Questions of each task to learn from."""
    num_test: int
    """Questions of each task held out."""
    tokens_per_task: int
    methods: tuple[MethodRecipe, ...]
    rows_per_step: int = 4
    general_rows: int = 64
    """Of the general test text, measured on after every task."""
    retention: RetentionSettings = dataclasses.field(default_factory=RetentionSettings)
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Check the bounds."""
        check(len(set(self.tasks)) == len(self.tasks) > 1, "tasks", self.tasks, "tasks that differ, at least two")
        for name in ("num_train", "num_test", "tokens_per_task", "general_rows"):
            check(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        names = [method.name for method in self.methods]
        check(len(set(names)) == len(names) > 0, "methods", names, "names that differ, at least one")
        check(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", self.seeds, "seeds that differ, at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """One base of a study of scale: made here with the tiny base's tokenizer, or at hand."""

    name: str
    folder: str | None = None
    """A base that is there, or `tiny`; None to make one."""
    hidden_size: int = 64
    num_blocks: int = 4
    num_heads: int = 2
    tokens: int = 400_000
    """Of general text to make it with."""
    lr: float = 1.2e-2
    """Of Muon, as the tiny base's."""
    new_blocks: int
    """How many the arm `blocks` adds; LoRA gets as many parameters."""

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name in ("hidden_size", "num_blocks", "num_heads", "tokens", "lr", "new_blocks"):
            check(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        fits = self.hidden_size % (2 * self.num_heads) == 0
        check(fits, "hidden_size", self.hidden_size, "a multiple of twice num_heads")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRecipe:
    """A study."""

    title: str
    question: str
    paper: str
    """What the paper found."""
    base: str = TINY
    texts: Texts = dataclasses.field(default_factory=Texts)
    compare: dict[str, Any] = dataclasses.field(default_factory=dict)
    """A comparison's settings, without its base, data and folders."""
    bases: tuple[BaseRecipe, ...] = ()
    """Several bases, each compared in the same way."""
    shift: ShiftRecipe | None = None
    """Also: how the base ranks the words that each arm's chosen run says."""
    sequence: SequenceRecipe | None = None
    """Instead of a comparison: tasks in a row."""

    def __post_init__(self) -> None:
        """Check that it is a study of one kind."""
        kinds = [name for name in ("compare", "sequence") if getattr(self, name)]
        check(len(kinds) == 1, "study", kinds, "exactly one of compare and sequence")
        taken = sorted({"base", "out", "data", "runs"} & set(self.compare))
        check(not taken, "compare", taken, "no base, out, data or runs: the study fills them in")
        names = [base.name for base in self.bases]
        check(len(set(names)) == len(names), "bases", names, "names that differ")


def known_studies() -> dict[str, Path]:
    """The recipes of studies/recipes, by name."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def load_study(name: str | Path, overrides: Sequence[str] = ()) -> tuple[str, StudyRecipe]:
    """A study by its name or its file, with `key=value` overrides applied; its short name, and its settings.

    Raises:
        UsageError: no study has this name, and no file is there.
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    known = known_studies()
    path = known.get(str(name), Path(name))
    if not path.is_file():
        raise UsageError(
            f"no study {str(name)!r}; expected one of studies/recipes or a YAML file; {nearest(str(name), known)}"
        )
    return path.stem, from_plain(StudyRecipe, apply_overrides(read_yaml(path), list(overrides)), str(path))
