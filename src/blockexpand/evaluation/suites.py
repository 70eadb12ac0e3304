"""Suites of tasks, as versioned data.

In: a YAML file, of ours (`suites/*.yaml`) or a person's own. Out: a `Suite`, a frozen value. Refused, with the nearest
name: unknown suites, tasks, keys and kinds; a task of its own without data.

A task is one of five kinds: `harness` (a task of lm-evaluation-harness, by its file there), `file` (a task in the
harness's YAML, beside the suite), and three short forms that need no more than the names of columns: `choice`,
`answer` and `text`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from blockexpand.errors import EvaluationError, RecordError, nearest
from blockexpand.records import check, from_plain, read_yaml
from blockexpand.records.evaluation import Side

OURS = Path(__file__).parent / "suites"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    task: str
    """The name of the task, of its folder of data and of its records."""
    shots: int = 0
    """Solved examples before each question."""
    metric: str = "acc"
    """The figure that counts; the others stand in the records."""
    filter: str = "none"
    """Which of the task's readings of the output the figure is of (the harness's word)."""
    side: Side | None = None
    """Of the verdict; none = the suite's."""
    columns: tuple[str, ...] = ()
    """What each row of the data must have, besides what the templates name."""

    def __post_init__(self) -> None:
        check(self.task.replace("_", "").replace("-", "").isalnum(), "task", self.task, "letters, digits, '-' and '_'")
        check(0 <= self.shots <= 64, "shots", self.shots, "0 to 64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HarnessTask(_Task):
    """A task of lm-evaluation-harness, or several that make one figure."""

    kind: Literal["harness"]
    files: str
    """A path below `lm_eval/tasks`; with `*` it is several tasks, counted together."""
    mean: Literal["samples", "tasks"] = "samples"
    """Of several tasks: over all samples, or over the tasks' means."""
    part: str = ""
    """Several tasks share one local file: the column that holds the harness's `dataset_name`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileTask(_Task):
    """A task in lm-evaluation-harness's YAML."""

    kind: Literal["file"]
    file: str
    """Its path, from the suite's folder."""
    sampled: bool = False
    """Whether its outputs can be drawn several times, for pass@k."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ShortForm(_Task):
    hub: str = ""
    """The data set on the hub, for want of a local file; it has splits named train and test."""
    hub_name: str | None = None
    """Its configuration."""
    split: str = "test"
    """What is asked."""
    examples: str = "train"
    """The split that solved examples come from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChoiceTask(_ShortForm):
    """The likeliest of some texts is the model's answer."""

    kind: Literal["choice"]
    question: str
    """A template over a row's columns, e.g. "{{clause}}\\nFair:"."""
    choices: str | tuple[str, ...]
    """The texts, or the column that holds them."""
    answer: str
    """The column with the right text or its number from 0, or a template that gives it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactTask(_ShortForm):
    """What the model writes, up to a stop, is compared with the answer; case and the full stop at the end do not
    count."""

    kind: Literal["answer"]
    question: str
    answer: str
    """The column with the answer, or a template that gives it."""
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    metric: str = "exact_match"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextTask(_ShortForm):
    """How well the model predicts a text: bits per byte, and perplexity per word."""

    kind: Literal["text"]
    text: str = "text"
    """The column that holds it."""
    metric: str = "bits_per_byte"


SuiteTask = HarnessTask | FileTask | ChoiceTask | ExactTask | TextTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """Tasks that are run together."""

    FORMAT: ClassVar[str] = "blockexpand.suite"
    FORMAT_VERSION: ClassVar[int] = 1

    suite: str
    """Its name."""
    version: int
    """Raised when what is asked or how it is scored changes: figures of two versions do not compare."""
    side: Side
    """Of the verdict: what must be kept (general), or what was to be gained (domain)."""
    tasks: tuple[SuiteTask, ...]
    about: str = ""
    chat: bool = False
    """Ask through the model's chat template."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What the weights are loaded as, unless said otherwise."""
    data: str = ""
    """The folder of the data, from the suite's; a suite of ours has none and is given one, or reads the hub."""

    def __post_init__(self) -> None:
        check(bool(self.tasks), "tasks", self.tasks, "at least one task")
        names = [one.task for one in self.tasks]
        for name in names:
            check(names.count(name) == 1, "tasks", name, "each name once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteFile:
    """A suite as it is to be run."""

    suite: Suite
    folder: Path
    """Where its file is."""

    def side_of(self, task: SuiteTask) -> Side:
        """Which side of the verdict a task of it is on."""
        return task.side or self.suite.side


def known_suites() -> dict[str, Path]:
    """The suites that come with blockexpand, by name."""
    return {path.stem: path for path in sorted(OURS.glob("*.yaml"))}


def load_suites(names: Sequence[str]) -> list[SuiteFile]:
    """The suites asked for.

    Args:
        names: Suites of ours, single tasks of them, or paths of YAML files.

    Raises:
        EvaluationError: no suite or task has the name, or two of them have a task in common.
    """
    known = known_suites()
    every = {name: read_suite(path) for name, path in known.items()}
    found: list[SuiteFile] = []
    for name in names:
        if name in every:
            found.append(every[name])
        elif name.endswith((".yaml", ".yml")):
            found.append(read_suite(Path(name)))
        else:
            found.append(_single(name, every))
    seen: set[str] = set()
    for one in found:
        for task in one.suite.tasks:
            if task.task in seen:
                raise EvaluationError(
                    f"the task {task.task!r} is asked for twice in {', '.join(names)}; leave out one suite, or name "
                    "single tasks"
                )
            seen.add(task.task)
    return found


def dtype_of(suites: Sequence[SuiteFile]) -> str:
    """What the suites want weights to be loaded as; "auto" where they leave it to the checkpoint.

    Raises:
        EvaluationError: they want different types.
    """
    wanted = {one.suite.dtype or "auto" for one in suites}
    if len(wanted) > 1:
        names = ", ".join(f"{one.suite.suite}: {one.suite.dtype or 'auto'}" for one in suites)
        raise EvaluationError(f"the suites want different number formats ({names}); run them apart, or give --dtype")
    return wanted.pop() if wanted else "auto"


def _single(name: str, every: dict[str, SuiteFile]) -> SuiteFile:
    """A suite of one task; where several suites have it, the first that is no collection of others' tasks."""
    for chosen in sorted(every.values(), key=lambda c: c.suite.suite == "paper"):
        for task in chosen.suite.tasks:
            if task.task == name:
                return dataclasses.replace(chosen, suite=dataclasses.replace(chosen.suite, tasks=(task,)))
    tasks = {task.task for chosen in every.values() for task in chosen.suite.tasks}
    raise EvaluationError(
        f"no suite or task is called {name!r}; {nearest(name, {*every, *tasks})} A suite of your own is given by the "
        "path of its .yaml"
    )


def read_suite(path: Path) -> SuiteFile:
    """The suite in a YAML file.

    Raises:
        EvaluationError: the file is missing or is not a suite.
    """
    try:
        data = read_yaml(path)
        if not isinstance(data, dict) or data.pop("format", None) != Suite.FORMAT:
            raise RecordError(f"{path} is not a suite: expected a mapping with 'format: {Suite.FORMAT}'")
        if (version := data.pop("format_version", None)) != Suite.FORMAT_VERSION:
            raise RecordError(f"{path}: format_version {version!r}, this blockexpand reads {Suite.FORMAT_VERSION}")
        return SuiteFile(suite=from_plain(Suite, data, str(path)), folder=Path(path).parent)
    except RecordError as error:
        raise EvaluationError(str(error)) from None
