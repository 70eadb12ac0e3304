"""The tables of everything but a comparison: stages, proofs, evaluations, runs, corpora, sources.

In: records as they were found. Out: tables of raw values. A kind of which nothing was found gives no table.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockexpand.records.corpus import CorpusRecord
from blockexpand.records.evaluation import Evaluation
from blockexpand.records.expansion import Proof
from blockexpand.reporting.sources import Found, Run, Source
from blockexpand.reporting.stages import Stages
from blockexpand.reporting.tables import Column, Table, Value


def stages_table(stages: Stages) -> Table:
    """The stages with their wall times, and all of them together."""
    rows = [(stage.name, stage.seconds, stage.note) for stage in stages.stages]
    columns = (
        Column(key="stage", title="Stage"),
        Column(key="seconds", title="Wall time", kind="seconds"),
        Column(key="note", title="What came of it"),
    )
    everything = ("All stages", stages.total_seconds, "")
    return Table(name="stages", title="How long each stage took", columns=columns, rows=(*rows, everything))


def proof_table(found: Found[Proof], number: int) -> Table:
    """Every check of one proof."""
    proof = found.value
    columns = (
        Column(key="result", title=""),
        Column(key="check", title="What must hold"),
        Column(key="figure", title="What was found"),
    )
    rows = tuple(("holds" if check.passed else "FAILS", check.name, check.figure) for check in proof.checks)
    kind = "its new blocks trained" if proof.trained else "as it was expanded"
    where = f"on {proof.device}" + (f" in {' and '.join(proof.dtypes)}" if proof.dtypes else "")
    return Table(
        name="proof" if number == 0 else f"proof-{number + 1}",
        title=f"{found.label}: {kind}, computed {where}",
        columns=columns,
        rows=rows,
    )


def evaluations_table(evaluations: Sequence[Found[Evaluation]]) -> Table | None:
    """The held-out losses of every evaluation that was given: one row a model and text."""
    rows: list[tuple[Value, ...]] = []
    for found in evaluations:
        for text, one in found.value.record.held_out.items():
            sizes = (one.num_documents, one.num_tokens)
            rows.append((found.label, text, one.loss, one.perplexity, one.bits_per_byte, *sizes))
    columns = (
        Column(key="evaluation", title="Evaluation"),
        Column(key="text", title="Text"),
        Column(key="loss", title="Loss", kind="loss", unit="nats per token"),
        Column(key="perplexity", title="Perplexity", kind="perplexity"),
        Column(key="bits_per_byte", title="Bits per byte", kind="loss"),
        Column(key="num_documents", title="Documents", kind="count"),
        Column(key="num_tokens", title="Tokens", kind="count"),
    )
    if not rows:
        return None
    return Table(name="evaluations", title="Held-out losses of the models given", columns=columns, rows=tuple(rows))


def runs_table(runs: Sequence[Found[Run]]) -> Table | None:
    """Runs that were given on their own, e.g. the instruction tuning."""
    if not runs:
        return None
    columns = (
        Column(key="run", title="Run"),
        Column(key="arm", title="Method"),
        Column(key="lr", title="Learning rate", kind="lr"),
        Column(key="num_steps", title="Steps", kind="count"),
        Column(key="num_tokens", title="Tokens", kind="count"),
        Column(key="num_trainable_parameters", title="Trainable parameters", kind="parameters"),
        Column(key="domain_before", title="Domain loss before", kind="loss"),
        Column(key="domain_after", title="after", kind="loss"),
        Column(key="rise", title="General loss", kind="rise"),
        Column(key="tokens_per_second", title="Tokens per second", kind="rate"),
        Column(key="peak_memory_bytes", title="Peak memory", kind="bytes"),
        Column(key="train_seconds", title="Training time", kind="seconds"),
    )
    rows = []
    for found in runs:
        one = found.value.record
        best, base = one.best, one.base
        rows.append(
            (
                found.label,
                one.settings.arm.kind,
                one.settings.optimizer.lr,
                one.num_steps,
                one.num_tokens,
                one.num_trainable_parameters,
                base.domain if base else None,
                best.domain if best else None,
                best.rise if best else None,
                one.tokens_per_second,
                one.peak_memory_bytes,
                one.train_seconds,
            )
        )
    return Table(name="runs", title="Single runs", columns=columns, rows=tuple(rows))


def corpora_table(corpora: Sequence[Found[CorpusRecord]]) -> Table | None:
    """The splits of the prepared texts."""
    rows = [
        (found.label, name, one.num_documents, one.num_tokens, one.num_bytes, one.fill, one.digest)
        for found in corpora
        for name, one in found.value.splits.items()
    ]
    columns = (
        Column(key="text", title="Text"),
        Column(key="split", title="Split"),
        Column(key="num_documents", title="Documents", kind="count"),
        Column(key="num_tokens", title="Tokens", kind="count"),
        Column(key="num_bytes", title="Size", kind="bytes"),
        Column(key="fill", title="Filled", kind="share", unit="of all positions"),
        Column(key="digest", title="Digest"),
    )
    return Table(name="texts", title="The texts", columns=columns, rows=tuple(rows)) if rows else None


def sources_table(sources: Sequence[Source]) -> Table:
    """Every file the page was made from."""
    columns = (
        Column(key="file", title="File"),
        Column(key="format", title="Format"),
        Column(key="digest", title="SHA-256"),
    )
    rows = tuple((one.path, one.format, one.digest) for one in sources)
    return Table(name="sources", title="The files this page was made from", columns=columns, rows=rows)
