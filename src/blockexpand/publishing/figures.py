"""The figures for a card's table, of results that are this model's and no other's.

In: what is published, a folder of records that `eval` wrote, and one of the base's. Out: rows of the table. Refused:
records of a model with another fingerprint, records that cannot be compared, and a pack's records without the base's,
since only together they tell what was measured.

A fingerprint is of the weights files. A checkpoint's is computed from its files; the base's from the old blocks'
bytes in it and the headers in its record, as `pack detach` would write them. A pack's figures are the base's with
the pack on it (`eval BASE --pack PACK`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from blockexpand.checkpoint import Checkpoint, write_skeleton
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import PublishError
from blockexpand.packs import Pack
from blockexpand.packs.base import base_within
from blockexpand.packs.card import Figure
from blockexpand.packs.pack import WEIGHTS
from blockexpand.records.evaluation import Difference, EvaluationRecord, read_evaluation
from blockexpand.records.expansion import ExpansionRecord


@dataclass(frozen=True, kw_only=True)
class Records:
    """Where results are."""

    model: Path
    """The folder of records of what is published."""
    base: Path | None = None
    """The folder of records of its base."""


def pack_figures(pack: Pack, records: Records) -> tuple[Figure, ...]:
    """The figures of a pack on its base.

    Raises:
        PublishError: the records are of another model.
        EvaluationError: they are none, or cannot be compared.
    """
    ours, theirs = _read(records)
    if theirs is None:
        raise PublishError(
            f"whether {records.model} is of the pack {pack.name!r} cannot be told without its base's results; expected "
            "those, too; add --against BASE_RECORDS"
        )
    # As evaluation fingerprints a base with packs.
    expected = digest_json([theirs.model_digest, {WEIGHTS: digest_file(pack.folder / WEIGHTS)}])
    _check(records.model, ours, expected, f"{records.base} with the pack {pack.folder} on it")
    return _figures(records, ours)


def checkpoint_figures(expanded: Checkpoint, record: ExpansionRecord, records: Records) -> tuple[Figure, ...]:
    """The figures of a checkpoint, beside its base's where these are given; raises as `pack_figures`."""
    ours, theirs = _read(records)
    found = digest_json({name: digest_file(expanded.folder / name) for name in expanded.shards})
    _check(records.model, ours, found, f"the weights of {expanded.folder}")
    if theirs is not None:
        _check(records.base, theirs, _base_digest(expanded, record), f"the base inside {expanded.folder}")
    return _figures(records, ours)


def _read(records: Records) -> tuple[EvaluationRecord, EvaluationRecord | None]:
    theirs = read_evaluation(records.base).record if records.base else None
    return read_evaluation(records.model).record, theirs


def _check(path: Path | None, record: EvaluationRecord, expected: str, what: str) -> None:
    if record.model_digest != expected:
        raise PublishError(
            f"{path} is of another model, {record.model} ({record.model_digest[:23]}...); expected results of {what} "
            f"({expected[:23]}...); measure it with `blockexpand eval`"
        )


def _base_digest(expanded: Checkpoint, record: ExpansionRecord) -> str:
    """What evaluation would call the base inside."""
    if not record.base_files:
        raise PublishError(
            f"{expanded.folder} does not say what its base's files were, so the base's results cannot be held against "
            "them; expected a record with base_files; leave --against out"
        )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_skeleton(base_within(expanded, record), record.base_files, folder, record.plan.base.config_digest)
        return digest_json({path.name: digest_file(path) for path in folder.glob("*.safetensors")})


def _figures(records: Records, ours: EvaluationRecord) -> tuple[Figure, ...]:
    from blockexpand.evaluation.verdict import compare_records

    compared = compare_records(records.model, records.base) if records.base else {}
    rows = [
        _figure(name, compared, "loss, nats per token", f"{one.num_documents:,} held-out documents", one.loss, True)
        for name, one in ours.held_out.items()
    ]
    for name, one in ours.suites.tasks.items() if ours.suites else ():
        if one.value is not None:
            limit = f", the first {ours.limit}" if ours.limit else ""
            of = f"{one.suite} v{one.suite_version}, {one.shots}-shot{limit}, {one.num_samples:,} samples"
            rows.append(_figure(name, compared, one.metric, of, one.value))
    return tuple(rows)


def _figure(
    name: str, compared: dict[str, Difference], metric: str, of: str, value: float, held_out: bool = False
) -> Figure:
    one = compared.get(name)
    if one is None:
        return Figure(name=name, metric=metric, of=of, held_out=held_out, ours=value)
    low, high = (one.interval.low, one.interval.high) if one.interval is not None else (None, None)
    return Figure(
        name=name, metric=metric, of=of, held_out=held_out, ours=one.ours, theirs=one.theirs, low=low, high=high
    )
