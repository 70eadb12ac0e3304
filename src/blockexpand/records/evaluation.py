"""What an evaluation leaves: the record, the losses of each document, the samples; what two come to.

In: a folder that `evaluate` wrote: `blockexpand.json`, `losses-<name>.npz` (one entry a document)
and `samples/<task>.jsonl` (one line a question). Out: the same as values, for pairing and for pages. Refused: another
folder.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from blockexpand.errors import EvaluationError, RecordError
from blockexpand.records.budget import BudgetStatement
from blockexpand.records.codec import WRITTEN_WHEN_SET, from_plain, read_json, read_record, to_plain
from blockexpand.records.intervals import Interval
from blockexpand.records.pack import Rule
from blockexpand.staging import RECORD_NAME

Side = Literal["general", "domain"]
SAMPLES = "samples"

# M = documents.


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well a model predicts a split."""

    loss: float
    """Nats per token, over all tokens that count."""
    perplexity: float
    bits_per_byte: float | None
    """None where only the first documents were measured: their bytes are not known."""
    num_documents: int
    num_tokens: int
    """Tokens that count."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentLosses:
    """The parts of a held-out loss, for pairing."""

    nats_M: np.ndarray
    """Sum of the cross-entropies of each document's tokens, float64."""
    tokens_M: np.ndarray
    """Tokens of each document that count, int64."""

    def summary(self, num_bytes: int | None) -> HeldOut:
        """The figures over all documents, whose text has `num_bytes` bytes."""
        total, count = float(self.nats_M.sum()), int(self.tokens_M.sum())
        loss = total / count
        return HeldOut(
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),
            bits_per_byte=total / math.log(2) / num_bytes if num_bytes else None,
            num_documents=len(self.nats_M),
            num_tokens=count,
        )


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
    cut_tokens: int
    """Tokens of the prompt that did not fit the model's context and were left out at its beginning."""
    error: str | None = None
    """Why there is no answer: then the sample counts for nothing, least of all as wrong."""
    route: str | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """The packs that the question was given, where they were chosen; all its choices have the same."""

    @property
    def chance(self) -> float | None:
        """Of guessing right among the choices, whose log-likelihoods the output is; none where the model wrote."""
        choices = len(self.output)
        return 1 / choices if choices > 1 and all(isinstance(one, float) for one in self.output) else None


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
    low: float | None
    """Of the 95 % interval over samples, as is `high`; none where there are too few, or the figure is no such mean."""
    high: float | None
    chance: float | None
    """What guessing among the choices gives; none where there is nothing to guess among."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteResults:
    """All figures of an evaluation by suites."""

    tasks: dict[str, TaskScore]
    chat: bool
    batch_size: int
    samples: int
    """Outputs drawn for each question that counts pass@k."""
    seeds: dict[str, int]
    window_tokens: int | None
    """Of the text tasks; none where there is none."""
    stride_tokens: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoutedLoss:
    """What was chosen on one corpus."""

    chosen: dict[str, int]
    """Pieces by the packs they were given; `base` is none."""
    num_short: int
    """Pieces that ended within their prompt: nothing was chosen for them, and the base predicted all of them."""
    num_tokens: int
    """Tokens after the prompts."""
    after: dict[str, float]
    """Nats per token after the prompts: `routed`, and each candidate always on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
    """How packs were chosen, and how often which."""

    rule: Rule
    candidates: tuple[str, ...]
    passes: float
    """What scoring a token of a prompt costs, in passes of the base's blocks."""
    held_out: dict[str, RoutedLoss] = dataclasses.field(default_factory=dict)
    """By the corpus' name."""
    suites: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    """Samples of each task by the packs they were given."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """What a model scored; saved as the folder's `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.evaluation"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    model: str
    model_digest: str
    """Of the weights files' digests."""
    held_out: dict[str, HeldOut]
    """By the name each corpus was given."""
    corpora: dict[str, str]
    """The digest of each corpus' split: only equal ones can be paired."""
    versions: dict[str, str]
    dtype: str
    """What the weights were computed in."""
    limit: int | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """Only the first documents of each corpus and samples of each task; none = all."""
    suites: SuiteResults | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """The figures of the suites that were run."""
    routing: Routing | None = dataclasses.field(default=None, metadata=WRITTEN_WHEN_SET)
    """How packs were chosen, where they were."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A folder of records read back."""

    record: EvaluationRecord
    losses: dict[str, DocumentLosses]


def has_records(folder: Path) -> bool:
    """Whether `evaluate` wrote the folder."""
    path = folder / RECORD_NAME
    if not path.is_file():
        return False
    data = read_json(path)
    return isinstance(data, dict) and data.get("format") == EvaluationRecord.FORMAT


def read_evaluation(folder: str | Path) -> Evaluation:
    """A folder that `evaluate` wrote.

    Raises:
        EvaluationError: it is not one.
    """
    path = Path(folder)
    if not (path / RECORD_NAME).is_file():
        raise EvaluationError(f"{folder} is not a folder of records: it has no {RECORD_NAME}; make one with eval")
    record = read_record(EvaluationRecord, path / RECORD_NAME)
    losses = {}
    for name in record.held_out:
        with np.load(path / f"losses-{name}.npz", allow_pickle=False) as arrays:
            losses[name] = DocumentLosses(nats_M=arrays["nats"], tokens_M=arrays["tokens"])
    return Evaluation(record=record, losses=losses)


def write_samples(folder: Path, task: str, samples: Sequence[Sample]) -> None:
    """One line a sample, in `folder`."""
    (folder / SAMPLES).mkdir(exist_ok=True)
    text = "".join(json.dumps(to_plain(one), ensure_ascii=False) + "\n" for one in samples)
    (folder / SAMPLES / f"{task}.jsonl").write_text(text, encoding="utf-8")


def read_samples(folder: Path, task: str) -> list[Sample]:
    """What `write_samples` wrote.

    Raises:
        EvaluationError: it is not there or has other fields.
    """
    path = folder / SAMPLES / f"{task}.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [from_plain(Sample, json.loads(line), f"{path}, line {n + 1}") for n, line in enumerate(lines)]
    except (OSError, ValueError, RecordError) as error:
        raise EvaluationError(f"the samples of {task!r} cannot be read from {path}: {error}; evaluate again") from None


Unit = Literal["nats/token", "bits/byte", "share"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flips:
    """Samples that changed between right and wrong."""

    num_right_before: int
    num_lost: int
    """Right in theirs, wrong in ours."""
    num_gained: int
    by_chance: float
    """So many of either would change if what both do not know were guessed anew; see `verdict.flips_of`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of two models."""

    side: Side | None
    """None: of no side, and so not in the verdict."""
    unit: Unit
    """Of `ours`, `theirs` and the interval; lower is better, except of a share of right answers."""
    ours: float
    theirs: float
    interval: Interval | None
    """Of ours minus theirs, over pairs; none where there are too few to carry one."""
    num_pairs: int
    num_unanswered: int
    """Samples that one of them, or both, did not answer; they are in no pair."""
    better_by: float
    """Above 0 when ours is better: a share of right answers as it is, a loss as a share of theirs."""
    flips: Flips | None = None
    """Where each sample is right or wrong."""

    @property
    def is_noise(self) -> bool:
        """Whether the interval includes zero, or there are too few pairs for one."""
        return self.interval is None or self.interval.is_noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the domain was gained and the rest kept."""

    budget: float
    passed: bool
    gained: float
    """The mean of the domain's `better_by`."""
    most_lost: float
    """The largest loss of something general; below 0 when all of it became better."""
    reasons: tuple[str, ...]
    """Why not, one line each; empty when it passed."""
    statement: BudgetStatement | None = None
    """What can be promised of the losses of general text."""
