"""Tasks that were learnt in a row, as a record that a page can be made of.

In: the folder of such a study, with a `sequence.json`. Out: a `SequenceRecord`, and the sentence that it comes to.
Refused, by the reader of records: a matrix that is no matrix, a method without chains.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from blockexpand.comparison.results import Summary
from blockexpand.records import WRITTEN_WHEN_SET, check, read_record
from blockexpand.records.intervals import Interval
from blockexpand.reporting import formats

SEQUENCE_NAME = "sequence.json"

# T = tasks, C = choices: the base and each task's pack.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtTask:
    """One task of the row."""

    name: str
    like: str
    """The task of TRACE that it stands for."""
    measure: Literal["whole", "share"]
    """Its score: the share of answers right to the letter, or the share of an answer's tokens that are right."""
    base: float
    """The base's score."""
    num_train: int
    num_test: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtChain:
    """One method and seed, from the base through all tasks."""

    seed: int
    matrix: tuple[tuple[float, ...], ...]
    """R: row t, column i is the score on task i after learning task t."""
    general_losses: tuple[float, ...]
    """Nats per token of general text after each task; of packs that are told, with the pack of that task on."""
    num_trainable_parameters: int
    """Of all tasks together."""
    cpu_seconds: float
    runs: tuple[str, ...]
    """The digest of each task's run."""
    chosen: tuple[tuple[float, ...], ...] | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Of packs that are not told: row i, column c is the share of task i's questions that chose the base (0) or the
    pack of task c, at the end."""

    def __post_init__(self) -> None:
        """Check that it is a matrix."""
        size = len(self.matrix)
        widths = [len(row) for row in self.matrix]
        check(size > 0 and widths == [size] * size, "matrix", widths, f"{size} rows of {size} scores")
        for name in ("general_losses", "runs"):
            check(len(vars(self)[name]) == size, name, len(vars(self)[name]), f"one for each of {size} tasks")
        if self.chosen is not None:
            widths = [len(row) for row in self.chosen]
            check(widths == [size + 1] * size, "chosen", widths, f"{size} rows of {size + 1} shares")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtMethod:
    """One way of learning the row."""

    name: str
    trains: str
    """What of the model it changes, in words."""
    lr: float
    packs: bool
    """Whether each task has new blocks of its own, to be switched on for its questions."""
    told: bool = dataclasses.field(default=True, metadata=WRITTEN_WHEN_SET)
    """Of packs: whether it is told which task a question is of, or each question chooses."""
    chains: tuple[TaughtChain, ...]
    op: Summary
    """The mean score over all tasks after the last one; over seeds, or of one seed over questions."""
    bwt: Summary
    """The mean over all tasks of the score after the last one minus the score right after learning it."""
    rise: Summary
    """General loss after the last task over the base's, minus 1; of packs that are told, the mean over them."""

    def __post_init__(self) -> None:
        """Check that there is something to tell."""
        check(len(self.chains) > 0, "chains", self.chains, "at least one seed")
        choosing = [chain.chosen is not None for chain in self.chains]
        expected = "what each question chose, where packs are not told, and nowhere else"
        check(choosing == [not self.told] * len(choosing), "chosen", choosing, expected)

    @property
    def one_on(self) -> bool:
        """Whether its general losses are those with one pack on."""
        return self.packs and self.told

    @property
    def chosen_TC(self) -> np.ndarray:
        """What the questions of each task chose, the mean over the seeds."""
        return np.mean([chain.chosen for chain in self.chains], axis=0)

    @property
    def matrix_TT(self) -> np.ndarray:
        """R, the mean over the seeds."""
        return np.mean([chain.matrix for chain in self.chains], axis=0)

    @property
    def losses_T(self) -> np.ndarray:
        """General loss after each task, the mean over the seeds."""
        return np.mean([chain.general_losses for chain in self.chains], axis=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaughtContrast:
    """The first method against another, paired: ours minus theirs."""

    ours: str
    theirs: str
    op: Interval
    bwt: Interval
    general: Interval
    """Nats per token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceRecord:
    """A finished row of tasks; saved as `sequence.json`."""

    FORMAT: ClassVar[str] = "blockexpand.sequence"
    FORMAT_VERSION: ClassVar[int] = 1

    title: str
    question: str
    paper: str
    """What the paper found."""
    base: str
    """The base's name."""
    base_digest: str
    """Of its weights."""
    base_general_loss: float
    num_general_tokens: int
    tokens_per_task: int
    rehearses: bool
    """Whether general text was mixed in."""
    tasks: tuple[TaughtTask, ...]
    """In the order in which they were learnt."""
    methods: tuple[TaughtMethod, ...]
    contrasts: tuple[TaughtContrast, ...]
    settings: dict[str, Any]
    """The recipe."""

    def __post_init__(self) -> None:
        """Check that methods and tasks fit."""
        check(len(self.methods) > 0, "methods", self.methods, "at least one")
        sizes = {len(chain.matrix) for method in self.methods for chain in method.chains}
        check(sizes == {len(self.tasks)}, "matrix", sorted(sizes), f"{len(self.tasks)} rows, one for each task")

    @property
    def num_seeds(self) -> int:
        """Of every method."""
        return len(self.methods[0].chains)


def read_sequence(folder: str | Path) -> SequenceRecord:
    """The row of tasks in the folder of a study.

    Raises:
        RecordError: it is damaged.
    """
    return read_record(SequenceRecord, Path(folder) / SEQUENCE_NAME)


def sequence_sentence(record: SequenceRecord) -> str:
    """What the first method came to, and against which others that can be told."""
    first = record.methods[0]
    lost = f"{formats.points(first.bwt.mean)} of what it had right after each task"
    said = (
        f"After {len(record.tasks)} tasks in a row, {first.name} has a mean score of {formats.share(first.op.mean)} "
        f"({lost}), and the general loss is {formats.rise(first.rise.mean)}."
    )
    parts = [
        (words, [c.theirs for c in record.contrasts if _falls(c.op) == side])
        for side, words in ((1, "higher than with"), (-1, "lower than with"), (0, "not to be told apart from"))
    ]
    told = "; ".join(f"{words} {_listed(names)}" for words, names in parts if names)
    return f"{said} Its mean score is {told}." if told else said


def _falls(one: Interval) -> int:
    """The side of zero that an interval lies on; 0 where it is noise."""
    return 0 if one.is_noise else 1 if one.difference > 0 else -1


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
