"""What suites leave behind: a line for each sample, and the figures of each task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from blockexpand.errors import EvaluationError, RecordError
from blockexpand.evaluation.entries import Side
from blockexpand.records import WRITTEN_WHEN_SET, from_plain, to_plain

FOLDER = "samples"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample of a task."""

    part: str
    """The task, or which of several that make its figure."""
    number: int
    """Of the row in its split, from 0."""
    document: str
    """Digest of the row: only equal ones are compared in pairs."""
    prompt: str
    """Digest of what the model was shown."""
    output: list[Any]
    """What it wrote, or the log-likelihood of each choice."""
    scores: dict[str, Any]
    """Each metric's value, or the pair that its mean is made of; empty where there was an error."""
    seconds: float
    """Its share of the passes it was in."""
    cut_tokens: int
    """Tokens of the prompt that did not fit the model's context and were left out at its beginning."""
    error: str | None = None
    """Why there is no answer: then the sample counts for nothing, least of all as wrong."""
    route: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """The packs that the question was given, where they were chosen; all its choices have the same."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartScore:
    """One task of the harness."""

    value: float | None
    num_samples: int
    version: str
    source: str
    digest: str
    """Of the rows of the whole split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore:
    """The figure of one task of a suite."""

    suite: str
    suite_version: int
    side: Side
    metric: str
    value: float | None
    """None when not one sample was answered."""
    higher_is_better: bool
    mean: Literal["samples", "tasks"]
    """Over what the figure is a mean, where several tasks make it."""
    standard_error: float | None
    """Of a mean over samples; none where the figure is something else."""
    shots: int
    num_samples: int
    """Those that count."""
    num_errors: int
    """Those that a server did not answer; they count for nothing."""
    num_cut: int
    """Those whose prompt did not fit."""
    others: dict[str, float]
    """The task's other metrics."""
    parts: dict[str, PartScore]
    seconds: float
    """Of this run, asking and scoring; what an earlier run had answered is not in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteResults:
    """All figures of an evaluation by suites."""

    tasks: dict[str, TaskScore]
    chat: bool
    batch_size: int
    limit: int | None
    samples: int
    """Outputs drawn for each question that counts pass@k."""
    seeds: dict[str, int]
    dtype: str
    window_tokens: int | None
    """Of the text tasks; none where there is none."""
    stride_tokens: int | None


def write_samples(folder: Path, task: str, samples: Sequence[Sample]) -> None:
    """One line a sample, in `folder`."""
    (folder / FOLDER).mkdir(exist_ok=True)
    text = "".join(json.dumps(to_plain(one), ensure_ascii=False) + "\n" for one in samples)
    (folder / FOLDER / f"{task}.jsonl").write_text(text, encoding="utf-8")


def read_samples(folder: Path, task: str) -> list[Sample]:
    """What `write_samples` wrote.

    Raises:
        EvaluationError: it is not there or has other fields.
    """
    path = folder / FOLDER / f"{task}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [from_plain(Sample, json.loads(line), f"{path}, line {n + 1}") for n, line in enumerate(lines)]
    except (OSError, ValueError, RecordError) as error:
        raise EvaluationError(f"the samples of {task!r} cannot be read from {path}: {error}; evaluate again") from None
