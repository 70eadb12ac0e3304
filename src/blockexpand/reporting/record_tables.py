"""The tables of everything but a comparison: budgets, evaluations and their differences, runs, proofs, texts.

In: records as they were found. Out: tables of raw values. A kind of which nothing was found gives no table.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockexpand.records.budget import BudgetStatement
from blockexpand.records.corpus import CorpusRecord
from blockexpand.records.evaluation import Evaluation
from blockexpand.records.expansion import Proof
from blockexpand.records.intervals import LEAST_PAIRS, ratio_difference
from blockexpand.records.run import Measurement, RunRecord
from blockexpand.reporting.sources import Found, Run, Source, model_name
from blockexpand.reporting.tables import Column, Spread, Table, Value, spread_of


def budget_table(found: Sequence[tuple[str, BudgetStatement]]) -> Table | None:
    """What is promised of general loss: a row for each kind of text of each statement."""
    rows = [
        (
            label,
            text.text,
            text.rise,
            text.bound,
            text.budget,
            "kept" if text.inside else "not promised",
            statement.level,
            text.num_documents,
            text.num_tokens,
            "as it is" if statement.scale is None else f"{statement.scale:g}",
        )
        for label, statement in found
        for text in statement.texts
    ]
    columns = (
        Column(key="model", title="Model"),
        Column(key="text", title="General text"),
        Column(key="rise", title="Rose by", kind="rise", unit="of the base\u2019s loss"),
        Column(key="bound", title="At most", kind="rise", unit="upper bound"),
        Column(key="budget", title="Budget", kind="rise"),
        Column(key="verdict", title="Verdict"),
        Column(key="level", title="Confidence", kind="share", unit="all texts together"),
        Column(key="num_documents", title="Documents", kind="count"),
        Column(key="num_tokens", title="Tokens", kind="count"),
        Column(key="scale", title="Scale", unit="of what was learnt"),
    )
    title = "The budget"
    return Table(name="budget", title=title, columns=columns, rows=tuple(rows)) if rows else None


# --- evaluations -----------------------------------------------------------------------------------------


def losses_table(evaluations: Sequence[Found[Evaluation]]) -> Table | None:
    """The held-out losses: one row a model and text."""
    rows: list[tuple[Value, ...]] = []
    for found in evaluations:
        for text, one in found.value.record.held_out.items():
            sizes = (one.num_documents, one.num_tokens)
            rows.append((found.label, text, one.loss, one.perplexity, one.bits_per_byte, *sizes))
    columns = (
        Column(key="model", title="Model"),
        Column(key="text", title="Text"),
        Column(key="loss", title="Loss", kind="loss", unit="nats per token"),
        Column(key="perplexity", title="Perplexity", kind="perplexity"),
        Column(key="bits_per_byte", title="Bits per byte", kind="loss"),
        Column(key="num_documents", title="Documents", kind="count"),
        Column(key="num_tokens", title="Tokens", kind="count"),
    )
    title = "Held-out losses"
    return Table(name="evaluations", title=title, columns=columns, rows=tuple(rows)) if rows else None


def pairs_of(evaluations: Sequence[Found[Evaluation]]) -> list[tuple[Found[Evaluation], Found[Evaluation], str]]:
    """What can be paired, as (before, after, text): each evaluation with the first that has the very same documents."""
    pairs = []
    for number, after in enumerate(evaluations):
        for text, digest in after.value.record.corpora.items():
            first = next((one for one in evaluations[:number] if one.value.record.corpora.get(text) == digest), None)
            if first is not None:
                pairs.append((first, after, text))
    return pairs


def change_of(before: Found[Evaluation], after: Found[Evaluation], text: str) -> Spread | float:
    """After minus before on one text, in nats per token; with an interval where there are pairs enough for one."""
    ours, theirs = after.value.losses[text], before.value.losses[text]
    found = ratio_difference(ours.nats_M, theirs.nats_M, ours.tokens_M)
    return spread_of(found) if len(ours.nats_M) >= LEAST_PAIRS else found.difference


def changes_table(evaluations: Sequence[Found[Evaluation]]) -> Table | None:
    """Differences of losses, paired over the documents."""
    rows: list[tuple[Value, ...]] = []
    for before, after, text in pairs_of(evaluations):
        change = change_of(before, after, text)
        base = before.value.record.held_out[text]
        mean = change.value if isinstance(change, Spread) else change
        if not isinstance(change, Spread):
            says = f"too few: {base.num_documents}"
        else:
            says = "noise" if change.is_noise else "better" if change.value < 0 else "worse"
        rows.append((after.label, before.label, text, change, mean / base.loss, says, base.num_documents))
    columns = (
        Column(key="model", title="Model"),
        Column(key="against", title="Against"),
        Column(key="text", title="Text"),
        Column(key="difference", title="Loss, difference", kind="difference", unit="nats per token", spread=True),
        Column(key="share", title="As a share", kind="rise", unit="of the other\u2019s loss"),
        Column(key="says", title="which says"),
        Column(key="num_documents", title="Documents", kind="count"),
    )
    notes = ("Paired: both models on the same documents; the interval is 95 %. Below zero is better.",)
    title = "What changed"
    return Table(name="changes", title=title, columns=columns, rows=tuple(rows), notes=notes) if rows else None


def suites_table(evaluations: Sequence[Found[Evaluation]]) -> Table | None:
    """Benchmarks: a row a task, a column a model, with the intervals over samples."""
    having = [found for found in evaluations if found.value.record.suites is not None]
    suites = [found.value.record.suites for found in evaluations if found.value.record.suites is not None]
    names = list(dict.fromkeys(name for one in suites for name in one.tasks))
    rows: list[tuple[Value, ...]] = []
    for name in names:
        scores = [one.tasks.get(name) for one in suites]
        first = next(score for score in scores if score is not None)
        shown: list[Value] = []
        for score in scores:
            if score is None or score.value is None:
                shown.append(None)
            elif score.low is None or score.high is None:
                shown.append(score.value)
            else:
                shown.append(Spread(value=score.value, low=score.low, high=score.high))
        errors = sum(score.num_errors for score in scores if score is not None)
        about = f"{first.shots} shot{'' if first.shots == 1 else 's'}"
        rows.append((name, first.side, first.metric, *shown, first.chance, first.num_samples, errors, about))
    columns = (
        Column(key="task", title="Task"),
        Column(key="side", title="Side"),
        Column(key="metric", title="Metric"),
        *(Column(key=f"score_{n}", title=found.label, kind="score", spread=True) for n, found in enumerate(having)),
        Column(key="chance", title="Chance", kind="score"),
        Column(key="num_samples", title="Samples", kind="count"),
        Column(key="num_errors", title="Errors", kind="count", unit="not counted"),
        Column(key="shots", title="Asked with"),
    )
    notes = ("Intervals are 95 %, over the samples of each model by itself; none where there are too few.",)
    title = "Benchmarks"
    return Table(name="suites", title=title, columns=columns, rows=tuple(rows), notes=notes) if rows else None


def routing_table(evaluations: Sequence[Found[Evaluation]]) -> Table | None:
    """Which packs were chosen, where they were chosen by the text."""
    rows: list[tuple[Value, ...]] = []
    for found in evaluations:
        routing = found.value.record.routing
        if routing is None:
            continue
        chosen = {f"text {name}": one.chosen for name, one in routing.held_out.items()}
        chosen |= {f"task {name}": counts for name, counts in routing.suites.items()}
        rows += [(found.label, what, packs, n, routing.passes) for what, c in chosen.items() for packs, n in c.items()]
    columns = (
        Column(key="model", title="Model"),
        Column(key="what", title="Of"),
        Column(key="packs", title="Packs"),
        Column(key="num", title="Given to", kind="count"),
        Column(key="passes", title="Passes", kind="loss", unit="of the base, a token"),
    )
    title = "Packs chosen by the text"
    return Table(name="routing", title=title, columns=columns, rows=tuple(rows)) if rows else None


# --- everything else -------------------------------------------------------------------------------------


def runs_table(runs: Sequence[Found[Run]]) -> Table | None:
    """Runs that were given on their own."""
    columns = (
        Column(key="run", title="Run"),
        Column(key="model", title="Model"),
        Column(key="arm", title="Method"),
        Column(key="lr", title="Learning rate", kind="lr"),
        Column(key="num_steps", title="Steps", kind="count"),
        Column(key="num_tokens", title="Tokens", kind="count"),
        Column(key="num_trainable_parameters", title="Trainable", kind="parameters"),
        Column(key="domain_before", title="Domain loss before", kind="loss"),
        Column(key="domain_after", title="after", kind="loss"),
        Column(key="rise", title="General loss", kind="rise"),
        Column(key="tokens_per_second", title="Speed", kind="rate", unit="tokens per second"),
        Column(key="load", title="Load", kind="rate", unit="of others beside it"),
        Column(key="cpu_seconds", title="CPU time", kind="seconds"),
        Column(key="peak_memory_bytes", title="Peak memory", kind="bytes"),
        Column(key="train_seconds", title="Training time", kind="seconds"),
    )
    rows = tuple(_run(found.label, found.value.record) for found in runs)
    notes = ("Losses are those of the steering sample, by which the checkpoint was chosen.",)
    return Table(name="runs", title="Runs", columns=columns, rows=rows, notes=notes) if rows else None


def _run(label: str, one: RunRecord) -> tuple[Value, ...]:
    before: Measurement | None = one.base
    after = one.best
    return (
        label,
        model_name(one.settings.model),
        one.settings.arm.kind,
        one.settings.optimizer.lr,
        one.num_steps,
        one.num_tokens,
        one.num_trainable_parameters,
        before.domain if before else None,
        after.domain if after else None,
        after.rise if after else None,
        one.tokens_per_second,
        one.load,
        one.cpu_seconds,
        one.peak_memory_bytes,
        one.train_seconds,
    )


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
        notes=tuple(f"Left out: {what}." for what in proof.left_out),
    )


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
