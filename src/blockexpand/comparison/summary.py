"""What a comparison found: the chosen learning rate of each arm, frontiers, paired intervals.

In: finished runs and their losses, document by document. Out: a `Comparison`. Refused: losses on other documents than
the base's, which cannot be paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from blockexpand.errors import ComparisonError
from blockexpand.records.comparison import ArmResult, CompareRecipe, Comparison, Contrast, Summary, Trial
from blockexpand.records.evaluation import Evaluation, read_evaluation
from blockexpand.records.intervals import Interval, ratio_difference, seeded_ratio_difference
from blockexpand.records.run import Measurement

# S = seeds, M = documents.


def pareto(points: Iterable[Measurement]) -> tuple[Measurement, ...]:
    """The measurements that no other one beats or equals in both losses, by rising general loss."""
    kept: list[Measurement] = []
    ordered = sorted((p for p in points if p.general is not None), key=lambda p: (p.general or 0.0, p.domain))
    for point in ordered:
        if not kept or point.domain < kept[-1].domain:
            kept.append(point)
    return tuple(kept)


def summarise(recipe: CompareRecipe, trials: Sequence[Trial], out: Path) -> Comparison:
    """Choose each arm's learning rate, and put its figures beside the base's.

    Args:
        recipe: The comparison.
        trials: All its finished runs.
        out: Its folder, with `base-eval` and the runs in it.
    """
    base = read_evaluation(out / "base-eval")
    chosen = {arm.name: _chosen(trials, arm.name) for arm in recipe.arms}
    reference = next((arm.name for arm in recipe.arms if arm.unrestricted), None)
    losses = {name: _losses(mine, out, base) for name, mine in chosen.items()}
    base_losses = {name: one.nats_M for name, one in base.losses.items()}
    tokens = {name: one.tokens_M for name, one in base.losses.items()}
    gains = {
        name: over_seeds([ratio_difference(base_losses["domain"], nats, tokens["domain"]) for nats in mine["domain"]])
        for name, mine in losses.items()
    }
    results = []
    for arm in recipe.arms:
        mine = chosen[arm.name]
        rises = [
            ratio_difference(nats, base_losses["general"], tokens["general"]) for nats in losses[arm.name]["general"]
        ]
        scale = 1 / base.record.held_out["general"].loss
        forgetting = over_seeds([_scaled(rise, scale) for rise in rises])
        gain = gains[arm.name]
        results.append(
            ArmResult(
                name=arm.name,
                unrestricted=arm.unrestricted,
                lr=mine[0].lr,
                trials=tuple(mine),
                general_loss=float(np.mean([t.held_out["general"].loss for t in mine])),
                domain_loss=float(np.mean([t.held_out["domain"].loss for t in mine])),
                forgetting=forgetting,
                gain=gain,
                gain_over_reference=gain.mean / gains[reference].mean if reference else None,
                frontier=pareto(m for t in trials if t.arm == arm.name for m in t.curve),
            )
        )
    first = recipe.arms[0].name
    contrasts = tuple(
        Contrast(
            ours=first,
            theirs=arm.name,
            domain=seeded_ratio_difference(losses[first]["domain"], losses[arm.name]["domain"], tokens["domain"]),
            general=seeded_ratio_difference(losses[first]["general"], losses[arm.name]["general"], tokens["general"]),
        )
        for arm in recipe.arms[1:]
    )
    return Comparison(
        recipe=recipe,
        base=base.record.held_out,
        arms=tuple(results),
        contrasts=contrasts,
        trials=tuple(trials),
    )


def _chosen(trials: Sequence[Trial], arm: str) -> list[Trial]:
    """The trials of the learning rate whose steering loss, averaged over the seeds, is lowest."""
    mine = [trial for trial in trials if trial.arm == arm]
    rates = sorted({trial.lr for trial in mine})
    best = min(rates, key=lambda lr: float(np.mean([t.steering.domain for t in mine if t.lr == lr])))
    return [trial for trial in mine if trial.lr == best]


def _losses(trials: Sequence[Trial], out: Path, base: Evaluation) -> dict[str, list[np.ndarray]]:
    evaluations = [read_evaluation(out / trial.run / "eval") for trial in trials]
    for trial, evaluation in zip(trials, evaluations, strict=True):
        if evaluation.record.corpora != base.record.corpora:
            raise ComparisonError(
                f"{out / trial.run / 'eval'} was measured on other documents than {out / 'base-eval'}; expected the "
                "same, for pairs; remove both folders and run compare again"
            )
    return {name: [e.losses[name].nats_M for e in evaluations] for name in ("general", "domain")}


def _scaled(interval: Interval, by: float) -> Interval:
    return Interval(difference=interval.difference * by, low=interval.low * by, high=interval.high * by)


def over_seeds(intervals: Sequence[Interval]) -> Summary:
    """The mean over seeds with a 95 % interval over seeds (Student's t); of one seed, over documents."""
    if len(intervals) == 1:
        return Summary(mean=intervals[0].difference, low=intervals[0].low, high=intervals[0].high)
    from scipy import stats

    values = np.array([interval.difference for interval in intervals])
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Summary(mean=float(values.mean()), low=float(values.mean() - half), high=float(values.mean() + half))
