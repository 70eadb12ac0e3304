"""What a report rests on: the records in the folders it was given, read and checked.

In: folders that earlier steps wrote. A folder is recognised by the format of the records in it. Out: a frozen
`Material`, and the digest of every file that was read. Refused, before anything is written: a folder that is
missing or holds no record of ours, a format we do not read, a damaged record, the same folder twice, and a
second comparison, row of tasks or story (one page is about one).
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from blockexpand.comparison import Comparison, Examination, read_comparison, read_examination
from blockexpand.comparison.examination import EXAMINATION_NAME
from blockexpand.corpus import open_corpus
from blockexpand.digests import digest_file
from blockexpand.errors import BlockexpandError, ReportError, nearest
from blockexpand.records import read_json, read_record
from blockexpand.records.agents import EPISODES_NAME, TASKS_NAME, AgentRecord, AgentRun, read_agent
from blockexpand.records.corpus import CorpusRecord
from blockexpand.records.evaluation import Evaluation, EvaluationRecord, read_evaluation
from blockexpand.records.expansion import ExpansionRecord, Proof, read_expansion
from blockexpand.records.judge import JUDGEMENTS_NAME, QUESTIONS_NAME, JudgeRecord, JudgeRun, read_judge
from blockexpand.records.run import RunRecord, read_metrics
from blockexpand.reporting.sequences import SEQUENCE_NAME, SequenceRecord, read_sequence
from blockexpand.reporting.stages import STAGES_NAME, Stages, read_stages
from blockexpand.staging import RECORD_NAME

T = TypeVar("T")

_COMPARISON_NAME, _PROOF_NAME = "comparison.json", "proof.json"
_NAMES = (_COMPARISON_NAME, RECORD_NAME, _PROOF_NAME, STAGES_NAME, SEQUENCE_NAME)
"""The files in which a folder of ours says what it is."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that the page rests on."""

    path: str
    """As it was given."""
    format: str
    """What the file says it is; of files without one, their suffix."""
    digest: str
    """The SHA-256 of its bytes."""


@dataclass(frozen=True, kw_only=True)
class Found(Generic[T]):
    """A record and where it was."""

    label: str
    """The folder's name, made longer where two folders have the same."""
    folder: Path
    value: T


Metrics = tuple[dict[str, Any], ...]
"""The lines of a run's metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run and what it wrote down as it went."""

    record: RunRecord
    metrics: Metrics


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that was found, each kind in the order the folders were given."""

    comparison: Found[Comparison] | None = None
    examination: Examination | None = None
    """What was seen in the comparison's runs beside their losses."""
    sequence: Found[SequenceRecord] | None = None
    """Tasks that were learnt in a row."""
    compared_runs: dict[str, Run] = field(default_factory=dict)
    """The comparison's runs by their place in it; those whose folders did not come along are missing."""
    expansions: tuple[Found[ExpansionRecord], ...] = ()
    proofs: tuple[Found[Proof], ...] = ()
    """Of expansions that have one, then those that stand alone."""
    evaluations: tuple[Found[Evaluation], ...] = ()
    runs: tuple[Found[Run], ...] = ()
    corpora: tuple[Found[CorpusRecord], ...] = ()
    agents: tuple[Found[AgentRun], ...] = ()
    judged: tuple[Found[JudgeRun], ...] = ()
    stages: Stages | None = None
    sources: tuple[Source, ...] = ()


def gather(folders: Sequence[str | Path]) -> Material:
    """Read the records in these folders.

    Raises:
        ReportError: there is nothing to read, or it is not in a format this room reads.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise ReportError(
            "there is nothing to report on: no folder was given; expected at least one that compare, expand, eval, "
            "agent, judge, train or prepare wrote; name it"
        )
    _refuse_twice(paths)
    labels = _labels(paths)
    gathering = _Gathering()
    for path in paths:
        for name in _records_in(path):
            gathering.read(path, name, labels[path])
    return gathering.material()


def _refuse_twice(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        before = seen.setdefault(path.resolve(), path)
        if before is not path:
            raise ReportError(f"the folder {path} was given twice (as {before}); give it once")


def _labels(paths: Sequence[Path]) -> dict[Path, str]:
    """The end of each path that no other one has."""
    labels = {}
    for path in paths:
        parts = path.resolve().parts
        others = [p.resolve().parts for p in paths if p is not path]
        size = next((n for n in range(1, len(parts)) if all(o[-n:] != parts[-n:] for o in others)), len(parts))
        labels[path] = "/".join(parts[-size:])
    return labels


def _records_in(folder: Path) -> list[str]:
    expected = "expected a folder that compare, expand, eval, agent, judge, train, prepare or verify wrote"
    if not folder.exists():
        raise ReportError(f"cannot report on {folder}: there is no such folder; {expected}; check the path")
    if not folder.is_dir():
        raise ReportError(f"cannot report on {folder}: it is a file; {expected}; give the folder it is in")
    found = [name for name in _NAMES if (folder / name).is_file()]
    if not found:
        raise ReportError(
            f"cannot report on {folder}: it holds no {', no '.join(_NAMES)}; {expected}; check the path, or run that "
            "step to its end first"
        )
    return found


class _Gathering:
    """Material while it grows: lists by format, each filled by the reader of that format."""

    def __init__(self) -> None:
        self._found: dict[str, list[Found[Any]]] = {}
        self._compared_runs: dict[str, Run] = {}
        self._examination: Examination | None = None
        self._sources: list[Source] = []
        self._readers: dict[str, Callable[[Path], Any]] = {
            Comparison.FORMAT: read_comparison,
            SequenceRecord.FORMAT: read_sequence,
            ExpansionRecord.FORMAT: read_expansion,
            Proof.FORMAT: lambda folder: read_record(Proof, folder / _PROOF_NAME),
            EvaluationRecord.FORMAT: read_evaluation,
            RunRecord.FORMAT: self._read_run,
            CorpusRecord.FORMAT: lambda folder: open_corpus(folder).record,
            AgentRecord.FORMAT: read_agent,
            JudgeRecord.FORMAT: read_judge,
            Stages.FORMAT: read_stages,
        }

    def read(self, folder: Path, name: str, label: str) -> None:
        """Read one record of a folder, and what lies beside it that belongs to it."""
        path = folder / name
        with _as_report_error(path):
            kind = self._format_of(path)
            value = self._readers[kind](folder)
        self._note(path, kind)
        self._found.setdefault(kind, []).append(Found(label=label, folder=folder, value=value))
        if kind == Comparison.FORMAT:
            self._read_compared(folder, value)
        if kind == EvaluationRecord.FORMAT and value.answered:
            self._note(folder / "answers.jsonl", "answers")
        if kind == AgentRecord.FORMAT:
            self._note(folder / EPISODES_NAME, "episodes")
            self._note(folder / TASKS_NAME, "tasks")
        if kind == JudgeRecord.FORMAT:
            self._note(folder / QUESTIONS_NAME, "questions")
            self._note(folder / "answers-first.jsonl", "conversations")
            self._note(folder / "answers-second.jsonl", "conversations")
            self._note(folder / JUDGEMENTS_NAME, "judgements")

    def _format_of(self, path: Path) -> str:
        data = read_json(path)
        found = data.get("format") if isinstance(data, dict) else None
        if not isinstance(found, str):
            raise ReportError(
                f"cannot report on {path}: it does not say its format; expected a record of ours; give the folder of a "
                "finished step"
            )
        if found not in self._readers:
            raise ReportError(
                f"cannot report on {path}: its format is {found!r}; expected one that a report reads; "
                f"{nearest(found, self._readers)}"
            )
        return found

    def _note(self, path: Path, kind: str) -> None:
        self._sources.append(Source(path=str(path), format=kind, digest=digest_file(path)))

    def _read_run(self, folder: Path) -> Run:
        record = read_record(RunRecord, folder / RECORD_NAME)
        path = folder / "metrics.jsonl"
        metrics = read_metrics(path)
        if path.is_file():
            self._note(path, "metrics")
        return Run(record=record, metrics=tuple(metrics))

    def _read_compared(self, folder: Path, comparison: Comparison) -> None:
        """The runs and expanded models that stand in a comparison's folder; a copy without them will do."""
        for trial in comparison.trials:
            run = folder / trial.run
            if not run.resolve().is_relative_to(folder.resolve()):
                raise ReportError(
                    f"cannot report on {folder / _COMPARISON_NAME}: the run {trial.run!r} is outside its folder; "
                    "expected a path inside it; run compare again"
                )
            if (run / RECORD_NAME).is_file():
                with _as_report_error(run / RECORD_NAME):
                    self._compared_runs[trial.run] = self._read_run(run)
                self._note(run / RECORD_NAME, RunRecord.FORMAT)
        with _as_report_error(folder / EXAMINATION_NAME):
            self._examination = read_examination(folder)
        if self._examination is not None:
            self._note(folder / EXAMINATION_NAME, Examination.FORMAT)
        self._read_grown(folder, comparison)
        for path in sorted((folder / "expanded").glob(f"*/{RECORD_NAME}")):
            self.read(path.parent, RECORD_NAME, path.parent.name)

    def _read_grown(self, folder: Path, comparison: Comparison) -> None:
        """The stack that the first arm trained, where grown bases are kept elsewhere."""
        model = folder / comparison.arms[0].trials[0].run / "model"
        grown = (model / RECORD_NAME).is_file() and comparison.recipe.arms[0].plan is not None
        if grown and not (folder / "expanded").is_dir():
            self.read(model, RECORD_NAME, comparison.arms[0].name)

    def material(self) -> Material:
        """Everything read so far."""
        expansions = _distinct(self._found.get(ExpansionRecord.FORMAT, []))
        proofs = [Found(label=e.label, folder=e.folder, value=e.value.proof) for e in expansions if e.value.proof]
        return Material(
            comparison=self._only(Comparison.FORMAT, "comparisons"),
            compared_runs=self._compared_runs,
            examination=self._examination,
            sequence=self._only(SequenceRecord.FORMAT, "rows of tasks"),
            expansions=expansions,
            proofs=(*proofs, *self._found.get(Proof.FORMAT, [])),
            evaluations=tuple(self._found.get(EvaluationRecord.FORMAT, [])),
            runs=tuple(self._found.get(RunRecord.FORMAT, [])),
            corpora=tuple(self._found.get(CorpusRecord.FORMAT, [])),
            agents=tuple(self._found.get(AgentRecord.FORMAT, [])),
            judged=tuple(self._found.get(JudgeRecord.FORMAT, [])),
            stages=found.value if (found := self._only(Stages.FORMAT, "records of stages")) else None,
            sources=tuple(self._sources),
        )

    def _only(self, kind: str, words: str) -> Found[Any] | None:
        found = self._found.get(kind, [])
        if len(found) > 1:
            raise ReportError(
                f"{len(found)} {words} were given ({', '.join(str(f.folder) for f in found)}); expected at most one; "
                "make a report of each"
            )
        return found[0] if found else None


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
