"""The figures for a card's table, of results that are this model's and no other's.

In: what is published, a folder of records that `eval` wrote, and one of the base's. Out: frozen `Results`, as they are
kept in the card. Refused: records of a model with another fingerprint, records that cannot be compared, and a pack's
records without the base's, since only together they tell what was measured.

A fingerprint is of the weights files. A checkpoint's is computed from its files; the base's from the old blocks'
bytes in it and the headers in its record, as `pack detach` would write them. A pack's figures are the base's with
the pack on it (`eval BASE --pack PACK`), or those of a folder whose blocks are the pack's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.checkpoint import Checkpoint, digest_tensors, open_checkpoint
from blockexpand.checkpoint.header import LENGTH_BYTES, open_to_read
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import PublishError, RecordError
from blockexpand.packs.base import base_within, new_names, old_names
from blockexpand.packs.pack import WEIGHTS, Pack
from blockexpand.publishing.subject import Published
from blockexpand.records import parse_json
from blockexpand.records.expansion import ExpansionRecord, FileText, read_expansion

if TYPE_CHECKING:
    from blockexpand.records.evaluation import Difference, EvaluationRecord

_PIECE_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table."""

    name: str
    """The task, or what the corpus was called."""
    metric: str
    """What was measured; of a corpus the loss in nats per token."""
    side: str | None
    """general or domain, where it is one of them."""
    held_out: bool
    """Whether it is of a prepared corpus; else it is a task of a suite."""
    suite: str | None
    """The suite and its version, the version of the task in the harness, and how many examples were shown."""
    samples: int
    """Documents or questions."""
    ours: float
    theirs: float | None
    """The base's; None where only the model was measured."""
    low: float | None
    """The 95 % interval of the difference, this model's minus the base's."""
    high: float | None
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured with `eval`."""

    figures: tuple[Figure, ...]
    model_digest: str
    """The fingerprint of the records."""
    base_digest: str | None
    """Of the base's records; None where only the model was measured."""
    versions: dict[str, str]
    """What it was measured with."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Where results are."""

    model: Path
    """The folder of records of what is published."""
    base: Path | None = None
    """The folder of records of its base."""
    measured: Path | None = None
    """Of a pack: the folder that was measured, where it was not the base with the pack on it."""


def read_results(published: Published, records: Records) -> Results:
    """The figures of a folder of records.

    Raises:
        PublishError: it is of another model, or the base's is of another base.
        EvaluationError: the records are none, or cannot be compared.
    """
    from blockexpand.evaluation.verdict import compare_records
    from blockexpand.records.evaluation import read_evaluation

    ours = read_evaluation(records.model).record
    theirs = read_evaluation(records.base).record if records.base else None
    _check_models(published, records, ours, theirs)
    compared = compare_records(records.model, records.base) if records.base else {}
    return Results(
        figures=(*_held_out(ours, compared), *_answers(ours, compared), *_tasks(ours, compared)),
        model_digest=ours.model_digest,
        base_digest=theirs.model_digest if theirs else None,
        versions={"blockexpand": ours.blockexpand_version, **ours.versions},
    )


def _held_out(ours: EvaluationRecord, compared: dict[str, Difference]) -> list[Figure]:
    return [
        _figure(name, compared, metric="loss, nats per token", held_out=True, samples=one.num_documents, ours=one.loss)
        for name, one in ours.held_out.items()
    ]


def _answers(ours: EvaluationRecord, compared: dict[str, Difference]) -> list[Figure]:
    if ours.answers is None:
        return []
    samples, right = ours.answers.num_samples, ours.answers.right
    return [_figure("answers", compared, metric="share right", samples=samples, ours=right, higher_is_better=True)]


def _tasks(ours: EvaluationRecord, compared: dict[str, Difference]) -> list[Figure]:
    found = []
    for name, one in ours.suites.tasks.items() if ours.suites else ():
        if one.value is None:
            continue
        versions = ", ".join(sorted({part.version for part in one.parts.values()}))
        told = f"{one.suite} v{one.suite_version}, task version {versions}, {one.shots}-shot"
        limit = f", the first {ours.suites.limit}" if ours.suites and ours.suites.limit else ""
        more = {"suite": told + limit, "samples": one.num_samples, "higher_is_better": one.higher_is_better}
        found.append(_figure(name, compared, metric=one.metric, side=one.side, ours=one.value, **more))
    return found


def _figure(name: str, compared: dict[str, Difference], **known: Any) -> Figure:
    """A row: what is known of the model alone, and of the comparison where there is one."""
    one = compared.get(name)
    side = name if name in ("general", "domain") else None
    given: dict[str, Any] = {"side": side, "held_out": False, "suite": None}
    given |= {"theirs": None, "low": None, "high": None, "higher_is_better": False} | known
    if one is not None:
        given |= {"ours": one.ours, "theirs": one.theirs, "low": one.interval.low, "high": one.interval.high}
    return Figure(name=name, **given)


# --- whose results they are ---------------------------------------------------------------------------


def _check_models(
    published: Published, records: Records, ours: EvaluationRecord, theirs: EvaluationRecord | None
) -> None:
    if published.pack is not None and records.measured is None:
        _check_on_base(published.pack, records, ours.model_digest, theirs)
        return
    folder = records.measured or published.folder
    expanded = open_checkpoint(folder)
    record = read_expansion(folder)
    if published.pack is not None:
        _check_same_blocks(published.pack, expanded, record)
    found = digest_json({name: digest_file(expanded.folder / name) for name in expanded.shards})
    if ours.model_digest != found:
        raise _other_model(records.model, ours, f"the weights of {folder}", found)
    if theirs is not None:
        base = base_digest(expanded, record)
        if base is None:
            raise PublishError(
                f"{folder} does not say what its base's files were, so {records.base} cannot be held against them; "
                "expected a record with base_files; give the model's results alone, without the base's"
            )
        if theirs.model_digest != base:
            raise _other_model(records.base, theirs, f"the base inside {folder}", base)


def _check_on_base(pack: Pack, records: Records, found: str, theirs: EvaluationRecord | None) -> None:
    if theirs is None:
        raise PublishError(
            f"whether {records.model} is of the pack {pack.name!r} cannot be told without its base's results; expected "
            "those, too; add --against BASE_RECORDS, or --model FOLDER if a folder with the pack's blocks was measured"
        )
    # As evaluation fingerprints a base with packs.
    expected = digest_json([theirs.model_digest, {WEIGHTS: digest_file(pack.folder / WEIGHTS)}])
    if found != expected:
        raise PublishError(
            f"{records.model} is of another model ({found[:23]}...); expected {expected[:23]}..., the model of "
            f"{records.base} with the pack {pack.folder} on it; measure with `blockexpand eval BASE --pack "
            f"{pack.folder}`, or name the folder that was measured with --model"
        )


def _other_model(records: Path | None, record: EvaluationRecord, what: str, found: str) -> PublishError:
    return PublishError(
        f"{records} is of another model, {record.model} ({record.model_digest[:23]}...); expected results of {what} "
        f"({found[:23]}...); measure it with `blockexpand eval`"
    )


def _check_same_blocks(pack: Pack, expanded: Checkpoint, record: ExpansionRecord) -> None:
    """Whether a folder is exactly the pack's base with the pack's blocks."""
    digests = {name: one.digest for name, one in digest_tensors(expanded).items()}
    new = {name: digests[held] for name, held in new_names(expanded, record.plan).items()}
    old = {name: digests[held] for held, name in old_names(expanded, record.plan).items()}
    if (new, old) != (pack.record.block_digests, pack.record.base_digests):
        raise PublishError(
            f"{expanded.folder} is not the pack {pack.name!r} on its base: their tensors differ; expected the folder "
            "that the pack was extracted from, or attached into alone; measure that one"
        )


def base_digest(expanded: Checkpoint, record: ExpansionRecord) -> str | None:
    """What evaluation would call the base inside; None where the record has not the headers of its files."""
    if not record.base_files:
        return None
    base = base_within(expanded, record)
    shards = [file for file in record.base_files if file.name.endswith(".safetensors")]
    return digest_json({file.name: _file_digest(file, base) for file in shards})


def _file_digest(file: FileText, base: Checkpoint) -> str:
    """The digest of a weights file of the base, as `pack detach` would write it."""
    raw = file.text.encode() + b" " * file.padding
    hasher = hashlib.sha256(len(raw).to_bytes(LENGTH_BYTES, "little") + raw)
    try:
        header = parse_json(file.text, file.name)
        ends = {name: one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"}
        entries = [base.tensors[name] for name in sorted(ends, key=lambda name: ends[name])]
    except (RecordError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise PublishError(
            f"the record of {base.folder} has a header of {file.name} that is none ({error}); expected it as expand "
            "wrote it; expand the base again"
        ) from None
    for entry in entries:
        with open_to_read(base.folder / entry.file) as stream:
            stream.seek(entry.start)
            for start in range(entry.start, entry.end, _PIECE_BYTES):
                hasher.update(stream.read(min(_PIECE_BYTES, entry.end - start)))
    return "sha256:" + hasher.hexdigest()
