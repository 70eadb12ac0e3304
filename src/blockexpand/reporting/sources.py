"""What a report rests on: the records in the folders it was given, read and checked.

In: folders that earlier steps wrote, each recognised by the format of the records in it. Out: a frozen `Material`, and
the digest of every file that was read. Neither torch nor transformers is loaded. Refused, before anything is written: a
folder that is missing or holds no record of ours, a format we do not read, a damaged record, the same folder twice, a
second comparison.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from blockexpand.digests import digest_file
from blockexpand.errors import BlockexpandError, ReportError, nearest
from blockexpand.records import read_json, read_record
from blockexpand.records.agents import AgentRecord, AgentRun, read_agent
from blockexpand.records.budget import BudgetStatement
from blockexpand.records.comparison import COMPARISON_NAME, Comparison, read_comparison
from blockexpand.records.corpus import CorpusRecord
from blockexpand.records.evaluation import Evaluation, EvaluationRecord, read_evaluation
from blockexpand.records.expansion import ExpansionRecord, Proof, read_expansion
from blockexpand.records.judge import JudgeRecord, JudgeRun, read_judge
from blockexpand.records.run import RunRecord, read_metrics
from blockexpand.staging import RECORD_NAME

T = TypeVar("T")

_PROOF_NAME, _BUDGET_NAME = "proof.json", "budget.json"
_NAMES = (COMPARISON_NAME, RECORD_NAME, _PROOF_NAME, _BUDGET_NAME)
"""The files in which a folder of ours says what it is."""
_BESIDE = ("metrics.jsonl", "episodes.jsonl", "tasks.jsonl", "questions.jsonl", "judgements.jsonl")
"""Files that may lie beside a record and belong to it."""
_PLAIN_NAMES = ("model", "report", "eval")
"""Names of folders that say nothing: the folder around them is named, too."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that the page rests on."""

    path: str
    """As it was given."""
    format: str
    """What the file says it is; of files without one, their name."""
    digest: str
    """The SHA-256 of its bytes."""


@dataclass(frozen=True, kw_only=True)
class Found(Generic[T]):
    """A record and where it was."""

    label: str
    """The name of the model it is about, or of its folder; made longer where two are the same."""
    folder: Path
    value: T


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run and what it wrote down as it went."""

    record: RunRecord
    metrics: tuple[dict[str, Any], ...]
    """The lines of its metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that was found, each kind in the order the folders were given."""

    comparison: Found[Comparison] | None = None
    expansions: tuple[Found[ExpansionRecord], ...] = ()
    proofs: tuple[Found[Proof], ...] = ()
    """Of expansions that have one, then those that stand alone."""
    evaluations: tuple[Found[Evaluation], ...] = ()
    runs: tuple[Found[Run], ...] = ()
    corpora: tuple[Found[CorpusRecord], ...] = ()
    agents: tuple[Found[AgentRun], ...] = ()
    judged: tuple[Found[JudgeRun], ...] = ()
    budgets: tuple[Found[BudgetStatement], ...] = ()
    sources: tuple[Source, ...] = ()


@dataclass
class _Gathering:
    """Material while it grows."""

    found: dict[str, list[Found[Any]]] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)

    def read(self, folder: Path, name: str, label: str) -> None:
        """Read one record of a folder, and note what lies beside it that belongs to it."""
        path = folder / name
        with _as_report_error(path):
            kind = _format_of(path)
            value = _READERS[kind](folder)
        self.note(path, kind)
        if name == RECORD_NAME:
            for beside in _BESIDE:
                if (folder / beside).is_file():
                    self.note(folder / beside, beside)
        self.found.setdefault(kind, []).append(Found(label=label, folder=folder, value=value))
        if kind == Comparison.FORMAT:
            self._read_stack(folder, value)

    def note(self, path: Path, kind: str) -> None:
        self.sources.append(Source(path=str(path), format=kind, digest=digest_file(path)))

    def _read_stack(self, folder: Path, comparison: Comparison) -> None:
        """The stack that the first arm with new blocks trained; a copy of the comparison without its runs will do."""
        for arm, recipe in zip(comparison.arms, comparison.recipe.arms, strict=True):
            run = folder / arm.trials[0].run
            if not run.resolve().is_relative_to(folder.resolve()):
                raise ReportError(
                    f"cannot report on {folder / COMPARISON_NAME}: the run {arm.trials[0].run!r} is outside it; "
                    "expected a path inside; run compare again"
                )
            if recipe.plan is not None and (run / "model" / RECORD_NAME).is_file():
                self.read(run / "model", RECORD_NAME, arm.name)
                return

    def only(self, kind: str) -> Found[Any] | None:
        """The one record of a kind of which a page has one."""
        found = self.found.get(kind, [])
        if len(found) > 1:
            raise ReportError(
                f"{len(found)} comparisons were given ({', '.join(str(f.folder) for f in found)}); expected at most "
                "one; make a report of each"
            )
        return found[0] if found else None

    def of(self, kind: str) -> tuple[Found[Any], ...]:
        """All records of a kind."""
        return tuple(self.found.get(kind, []))


def gather(folders: Sequence[str | Path]) -> Material:
    """Read the records in these folders.

    Raises:
        ReportError: there is nothing to read, or it is not in a format this room reads.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ReportError(f"there is nothing to report on: no folder was given; {_EXPECTED}; name it")
    seen: dict[Path, Path] = {}
    for path in paths:
        before = seen.setdefault(path.resolve(), path)
        if before is not path:
            raise ReportError(f"the folder {path} was given twice (as {before}); give it once")
    labels = _labels(paths)
    gathering = _Gathering()
    for path in paths:
        for name in _records_in(path):
            gathering.read(path, name, labels[path])
    expansions = _distinct(gathering.of(ExpansionRecord.FORMAT))
    proofs = [Found(label=e.label, folder=e.folder, value=e.value.proof) for e in expansions if e.value.proof]
    return Material(
        comparison=gathering.only(Comparison.FORMAT),
        expansions=expansions,
        proofs=(*proofs, *gathering.of(Proof.FORMAT)),
        evaluations=_named(gathering.of(EvaluationRecord.FORMAT)),
        runs=gathering.of(RunRecord.FORMAT),
        corpora=gathering.of(CorpusRecord.FORMAT),
        agents=gathering.of(AgentRecord.FORMAT),
        judged=gathering.of(JudgeRecord.FORMAT),
        budgets=gathering.of(BudgetStatement.FORMAT),
        sources=tuple(gathering.sources),
    )


_EXPECTED = "expected a folder that learn, compare, eval, agent, judge, train, expand, verify or prepare wrote"


def _records_in(folder: Path) -> list[str]:
    if not folder.exists():
        raise ReportError(f"cannot report on {folder}: there is no such folder; {_EXPECTED}; check the path")
    if not folder.is_dir():
        raise ReportError(f"cannot report on {folder}: it is a file; {_EXPECTED}; give the folder it is in")
    found = [name for name in _NAMES if (folder / name).is_file()]
    if not found:
        raise ReportError(
            f"cannot report on {folder}: it holds no {', no '.join(_NAMES)}; {_EXPECTED}; check the path, or run that "
            "step to its end first"
        )
    return found


def _format_of(path: Path) -> str:
    data = read_json(path)
    found = data.get("format") if isinstance(data, dict) else None
    if not isinstance(found, str) or found not in _READERS:
        raise ReportError(
            f"cannot report on {path}: its format is {found!r}; expected one that a report reads; "
            f"{nearest(str(found), _READERS)}"
        )
    return found


def _read_run(folder: Path) -> Run:
    record = read_record(RunRecord, folder / RECORD_NAME)
    return Run(record=record, metrics=tuple(read_metrics(folder / "metrics.jsonl")))


_READERS: dict[str, Callable[[Path], Any]] = {
    Comparison.FORMAT: read_comparison,
    ExpansionRecord.FORMAT: read_expansion,
    Proof.FORMAT: lambda folder: read_record(Proof, folder / _PROOF_NAME),
    EvaluationRecord.FORMAT: read_evaluation,
    RunRecord.FORMAT: _read_run,
    CorpusRecord.FORMAT: lambda folder: read_record(CorpusRecord, folder / RECORD_NAME),
    AgentRecord.FORMAT: read_agent,
    JudgeRecord.FORMAT: read_judge,
    BudgetStatement.FORMAT: lambda folder: read_record(BudgetStatement, folder / _BUDGET_NAME),
}


# --- names -----------------------------------------------------------------------------------------------


def model_name(path: str) -> str:
    """A model's name, of the path it was given by: runs/first/model is `first`."""
    parts = [part for part in path.rstrip("/").split("/") if part]
    while len(parts) > 1 and parts[-1] in _PLAIN_NAMES:
        parts.pop()
    return parts[-1] if parts else path


def _labels(paths: Sequence[Path]) -> dict[Path, str]:
    """The end of each path that no other one has."""
    labels = {}
    for path in paths:
        parts = path.resolve().parts
        others = [p.resolve().parts for p in paths if p is not path]
        least = next((n for n in range(1, len(parts)) if parts[-n] not in _PLAIN_NAMES), 1)
        size = next((n for n in range(least, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        labels[path] = "/".join(parts[-size:])
    return labels


def _named(evaluations: Sequence[Found[Evaluation]]) -> tuple[Found[Evaluation], ...]:
    """Evaluations under the names of their models; those of one name have their folders' names besides."""
    names = [model_name(found.value.record.model) for found in evaluations]
    return tuple(
        Found(
            label=f"{name} ({found.label})" if names.count(name) > 1 else name, folder=found.folder, value=found.value
        )
        for name, found in zip(names, evaluations, strict=True)
    )


def _distinct(expansions: Sequence[Found[ExpansionRecord]]) -> tuple[Found[ExpansionRecord], ...]:
    """One of each stack, the proved one first: a comparison's folder has its own copy of what it was given."""
    kept: list[Found[ExpansionRecord]] = []
    for one in sorted(expansions, key=lambda e: e.value.proof is None):
        if all(_stack(one) != _stack(other) for other in kept):
            kept.append(one)
    return tuple(kept)


def _stack(found: Found[ExpansionRecord]) -> tuple[object, ...]:
    plan = found.value.plan
    return plan.base.config_digest, plan.base.layout_digest, plan.new_blocks


@contextlib.contextmanager
def _as_report_error(path: Path) -> Generator[None]:
    """Turn whatever a damaged record raises when it is read into one line that names the file."""
    try:
        yield
    except ReportError:
        raise
    except (BlockexpandError, OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise ReportError(f"cannot report on {path}: {error}; expected a whole record; make it again") from error
