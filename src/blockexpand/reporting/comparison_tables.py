"""The tables of a comparison: its arms, its contrasts, all its trials, and what was seen in the chosen runs.

In: a finished comparison. Out: tables of raw values, which the page, the CSV files and the terminal share.
"""

from __future__ import annotations

import numpy as np

from blockexpand.records.comparison import ArmResult, Comparison
from blockexpand.reporting import formats
from blockexpand.reporting.methods import methods_of
from blockexpand.reporting.tables import Column, Spread, Table, Value, spread_of
from blockexpand.reporting.verdict import keeps_budget

METHOD = Column(key="method", title="Method")
BROKEN, NOTHING = "over the budget", "nothing inside"

ARM_COLUMNS = (
    METHOD,
    Column(key="trains", title="What trains", under=True),
    Column(key="gain", title="Gain", kind="difference", unit="nats per token", spread=True),
    Column(key="gain_over_reference", title="Share", kind="share", unit="of the reference\u2019s gain"),
    Column(key="forgetting", title="Forgetting", kind="rise", unit="of the general loss", spread=True),
    Column(key="budget", title="Budget", under=True),
    Column(key="domain_loss", title="Domain loss", kind="loss", unit="nats per token"),
    Column(key="domain_loss_before", title="Domain loss before", kind="loss", under=True, before="from\u00a0"),
    Column(key="general_loss", title="General loss", kind="loss", unit="nats per token"),
    Column(key="general_loss_before", title="General loss before", kind="loss", under=True, before="from\u00a0"),
    Column(key="num_trainable_parameters", title="Trainable", kind="parameters", unit="parameters"),
    Column(key="tokens_per_second", title="Speed", kind="rate", unit="tokens per second"),
    Column(key="load", title="Load", kind="rate", under=True, before="load\u00a0"),
    Column(key="cpu_seconds", title="CPU time", kind="seconds", unit="a run"),
    Column(key="peak_memory_bytes", title="Peak memory", kind="bytes"),
    Column(key="lr", title="Learning rate", kind="lr", unit="chosen"),
    Column(key="num_seeds", title="Seeds", kind="count", under=True, before="seeds:\u00a0"),
)


def arms_table(comparison: Comparison) -> Table:
    """One row a method, at its chosen learning rate, on the test documents."""
    methods = methods_of(comparison.recipe)
    base = comparison.base
    rows: list[tuple[Value, ...]] = []
    for arm in comparison.arms:
        method = methods[arm.name]
        rows.append(
            (
                method.name,
                method.trains,
                spread_of(arm.gain),
                arm.gain_over_reference,
                spread_of(arm.forgetting),
                _budget_word(arm, comparison),
                arm.domain_loss,
                base["domain"].loss,
                arm.general_loss,
                base["general"].loss,
                *_costs(arm),
                arm.lr,
                len(arm.trials),
            )
        )
    return Table(name="methods", title="The methods", columns=ARM_COLUMNS, rows=tuple(rows), notes=_notes(comparison))


def _costs(arm: ArmResult) -> tuple[float | None, ...]:
    trials = arm.trials
    loads = [t.load for t in trials if t.load is not None]
    return (
        trials[0].num_trainable_parameters,
        float(np.mean([t.tokens_per_second for t in trials])),
        float(np.mean(loads)) if loads else None,
        float(np.mean([t.cpu_seconds for t in trials])),
        max(t.peak_memory_bytes for t in trials),
    )


def _budget_word(arm: ArmResult, comparison: Comparison) -> str:
    budget = comparison.recipe.retention.forgetting_budget
    if arm.unrestricted:
        return "not asked for"
    if budget is None:
        return "no budget"
    if all(trial.kept_nothing for trial in arm.trials):
        return NOTHING
    if not keeps_budget(arm, budget):
        return BROKEN
    return "inside the budget" if arm.forgetting.high <= budget else "inside; its interval crosses"


def _notes(comparison: Comparison) -> tuple[str, ...]:
    num_seeds = len(comparison.recipe.seeds)
    general, domain = comparison.base["general"], comparison.base["domain"]
    where = (
        f"Measured once, at the end, on {formats.count(general.num_documents)} general and "
        f"{formats.count(domain.num_documents)} domain documents that no run was steered by."
    )
    if num_seeds == 1:
        how = (
            "Intervals are 95 %, over documents (one seed: the documents are resampled, the training is not repeated)."
        )
    else:
        how = f"Figures are means over {num_seeds} seeds and intervals are 95 %, over the seeds (Student\u2019s t)."
    return (where, how)


def contrasts_table(comparison: Comparison) -> Table:
    """The first arm against each other one, paired over the test documents."""
    methods = methods_of(comparison.recipe)
    ours = methods[comparison.arms[0].name].name
    rows: list[tuple[Value, ...]] = []
    for contrast in comparison.contrasts:
        learnt, forgot = spread_of(contrast.domain, -1), spread_of(contrast.general)
        rows.append(
            (
                methods[contrast.theirs].name,
                learnt,
                _in_words(learnt, "learnt more", "learnt less"),
                forgot,
                _in_words(forgot, "forgot more", "forgot less"),
            )
        )
    columns = (
        Column(key="against", title=f"{ours} against"),
        Column(key="gain_difference", title="Gain, difference", kind="difference", unit="nats per token", spread=True),
        Column(key="gain_says", title="which says"),
        Column(
            key="general_difference",
            title="General loss, difference",
            kind="difference",
            unit="nats per token",
            spread=True,
        ),
        Column(key="general_says", title="which says"),
    )
    notes = (
        "Paired: both methods on the same test documents, seed by seed; the interval is 95 %, over documents and, "
        "where there are several, over seeds. \u201cNoise\u201d stands where it includes zero: these documents and "
        "seeds cannot tell the two apart.",
    )
    return Table(
        name="contrasts", title=f"{ours} against each other method", columns=columns, rows=tuple(rows), notes=notes
    )


def _in_words(figure: Spread, above: str, below: str) -> str:
    return "noise" if figure.is_noise else above if figure.value > 0 else below


def trials_table(comparison: Comparison) -> Table:
    """Every run: also those whose learning rate was not chosen."""
    methods = methods_of(comparison.recipe)
    chosen = {arm.name: arm.lr for arm in comparison.arms}
    base = comparison.base["general"].loss
    columns = (
        METHOD,
        Column(key="lr", title="Learning rate", kind="lr"),
        Column(key="seed", title="Seed", kind="count"),
        Column(key="is_chosen", title="Chosen"),
        Column(key="steering_domain_loss", title="Domain loss, steering", kind="loss"),
        Column(key="steering_rise", title="Rise, steering", kind="rise"),
        Column(key="test_domain_loss", title="Domain loss, test", kind="loss"),
        Column(key="test_forgetting", title="Forgetting, test", kind="rise"),
        Column(key="shipped_step", title="Shipped at step", kind="count"),
        Column(key="tokens_per_second", title="Tokens per second", kind="rate"),
        Column(key="load", title="Load", kind="rate", unit="of others beside it"),
        Column(key="cpu_seconds", title="CPU time", kind="seconds"),
        Column(key="peak_memory_bytes", title="Peak memory", kind="bytes"),
        Column(key="train_seconds", title="Training time", kind="seconds"),
    )
    rows = tuple(
        (
            methods[trial.arm].name,
            trial.lr,
            trial.seed,
            "yes" if trial.lr == chosen[trial.arm] else "no",
            trial.steering.domain,
            trial.steering.rise,
            trial.held_out["domain"].loss,
            trial.held_out["general"].loss / base - 1,
            trial.steering.step,
            trial.tokens_per_second,
            trial.load,
            trial.cpu_seconds,
            trial.peak_memory_bytes,
            trial.train_seconds,
        )
        for trial in comparison.trials
    )
    notes = (
        "Steering figures come from the validation sample that chose the checkpoint and the learning rate; test "
        "figures from documents that were used for nothing else.",
    )
    return Table(name="trials", title="Every run", columns=columns, rows=rows, notes=notes)
