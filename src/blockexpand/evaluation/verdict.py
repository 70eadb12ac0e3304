"""Two models on the same samples: paired differences, and a verdict by a forgetting budget.

In: two folders of records. Out: for each task and each held-out loss the difference with its interval, and whether it
is noise; with a budget, whether the domain became better and everything general stayed within it. Refused: records of
other samples, metrics or suites, and a verdict over nothing general or nothing of the domain.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from blockexpand.errors import EvaluationError
from blockexpand.evaluation.evaluating import differences
from blockexpand.records import check
from blockexpand.records.evaluation import (
    Difference,
    Evaluation,
    Sample,
    Side,
    TaskScore,
    Verdict,
    read_evaluation,
    read_samples,
)
from blockexpand.records.intervals import Interval, ratio_difference

# M = samples that both models answered.


def compare_records(ours: str | Path, theirs: str | Path) -> dict[str, Difference]:
    """The paired differences of two folders of records, ours minus theirs, by task or corpus.

    Raises:
        EvaluationError: they were not measured on the same samples in the same way, or share nothing.
    """
    a, b = read_evaluation(ours), read_evaluation(theirs)
    found = {name: _held_out(name, one, a, b) for name, one in differences(ours, theirs).items()}
    if a.record.suites and b.record.suites:
        for name in sorted(a.record.suites.tasks.keys() & b.record.suites.tasks.keys()):
            scores = a.record.suites.tasks[name], b.record.suites.tasks[name]
            found[name] = _task(name, scores, (Path(ours), Path(theirs)))
    if not found:
        raise EvaluationError(f"{ours} and {theirs} have no task and no corpus in common; evaluate both on the same")
    return found


def _held_out(name: str, interval: Interval, a: Evaluation, b: Evaluation) -> Difference:
    if name == "answers" and a.record.answers and b.record.answers:
        ours, theirs, pairs, better = a.record.answers.right, b.record.answers.right, len(a.answered), 1
        better_by = ours - theirs
    else:
        ours, theirs = a.record.held_out[name].loss, b.record.held_out[name].loss
        pairs, better, better_by = a.record.held_out[name].num_documents, -1, 1 - ours / theirs
    sides: dict[str, Side] = {"general": "general", "domain": "domain"}
    return Difference(
        side=sides.get(name),
        ours=ours,
        theirs=theirs,
        interval=interval,
        is_noise=interval.is_noise,
        num_pairs=pairs,
        num_unanswered=0,
        higher_is_better=better > 0,
        better_by=better_by,
    )


def _task(name: str, scores: tuple[TaskScore, TaskScore], folders: tuple[Path, Path]) -> Difference:
    ours, theirs = scores
    for field in ("suite_version", "metric", "shots", "mean"):
        if (one := vars(ours)[field]) != (other := vars(theirs)[field]):
            raise EvaluationError(
                f"{name}: {folders[0]} has {field} {one!r}, {folders[1]} has {other!r}; evaluate both in the same way"
            )
    pairs, num_unanswered = _pairs(name, folders)
    if not pairs:
        raise EvaluationError(f"{name}: not one sample was answered by both models; resume or repeat the evaluation")
    a_M, b_M, weights_M = _values(ours, pairs)
    total = float(weights_M.sum())
    values = float(a_M.sum()) / total, float(b_M.sum()) / total
    better_by = values[0] - values[1] if ours.higher_is_better else 1 - values[0] / values[1]
    interval = ratio_difference(a_M, b_M, weights_M)
    return Difference(
        side=ours.side,
        ours=values[0],
        theirs=values[1],
        interval=interval,
        is_noise=interval.is_noise,
        num_pairs=len(pairs),
        num_unanswered=num_unanswered,
        higher_is_better=ours.higher_is_better,
        better_by=better_by,
    )


def _pairs(name: str, folders: tuple[Path, Path]) -> tuple[list[tuple[Sample, Sample]], int]:
    ours, theirs = ({(one.part, one.number): one for one in read_samples(folder, name)} for folder in folders)
    if ours.keys() != theirs.keys() or any(one.document != theirs[key].document for key, one in ours.items()):
        raise EvaluationError(
            f"{name}: {folders[0]} has {len(ours)} samples, {folders[1]} has {len(theirs)}, and they are not the same; "
            "evaluate both on the same data, with the same --limit"
        )
    every = [(one, theirs[key]) for key, one in ours.items()]
    answered = [(a, b) for a, b in every if a.error is None and b.error is None]
    return answered, len(every) - len(answered)


def _values(score: TaskScore, pairs: list[tuple[Sample, Sample]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both models' numerators and the common denominators, so that the figure is sum over sum; each [M]."""
    if score.metric == "bits_per_byte":
        numbers = [(a.scores[score.metric], b.scores[score.metric]) for a, b in pairs]
        bits_M2 = np.array([[-a[0] / math.log(2), -b[0] / math.log(2)] for a, b in numbers])
        return bits_M2[:, 0], bits_M2[:, 1], np.array([float(a[1]) for a, _ in numbers])
    values_M2 = np.array([[_number(score.metric, one) for one in pair] for pair in pairs])
    weights_M = np.ones(len(pairs))
    if score.mean == "tasks":
        sizes: dict[str, int] = {}
        for one, _ in pairs:
            sizes[one.part] = sizes.get(one.part, 0) + 1
        weights_M = np.array([1.0 / sizes[one.part] for one, _ in pairs])
    return values_M2[:, 0] * weights_M, values_M2[:, 1] * weights_M, weights_M


def _number(metric: str, sample: Sample) -> float:
    value: Any = sample.scores.get(metric)
    if not isinstance(value, int | float):
        raise EvaluationError(
            f"{sample.part}: the metric {metric!r} is no mean over samples ({str(value)[:60]}), so it cannot be "
            "compared in pairs; expected acc, exact_match, pass@1 or bits_per_byte; name one in the suite"
        )
    return float(value)


def judge(found: dict[str, Difference], budget: float) -> Verdict:
    """Whether the domain is better and everything general is within `budget`.

    The domain is better when the mean of its differences is above 0, one of them at least is more than noise, and none
    is worse by more than noise. Something general is within the budget when it lost no more: of a share of right
    answers in itself, of a loss as a share of theirs. A sample that a server did not answer spoils the verdict.

    Raises:
        EvaluationError: nothing of one of the two sides was measured.
    """
    check(0 <= budget < 1, "budget", budget, "0 or more and below 1, e.g. 0.01")
    general = {name: one for name, one in found.items() if one.side == "general"}
    domain = {name: one for name, one in found.items() if one.side == "domain"}
    for side, some in (("general", general), ("domain", domain)):
        if not some:
            raise EvaluationError(
                f"no verdict: nothing {side} was measured on both ({', '.join(found)}); expected at least one task or "
                f"corpus of each side; add a {side} suite, or --data {side}=folder"
            )
    gained = sum(one.better_by for one in domain.values()) / len(domain)
    reasons = [
        f"{name} lost {-one.better_by:.4f}, more than the budget of {budget}"
        for name, one in general.items()
        if -one.better_by > budget
    ]
    reasons += _domain_reasons(domain, gained)
    reasons += [
        f"{name}: {one.num_unanswered} samples have no answer" for name, one in found.items() if one.num_unanswered
    ]
    return Verdict(
        budget=budget,
        passed=not reasons,
        gained=gained,
        most_lost=max(-one.better_by for one in general.values()),
        reasons=tuple(reasons),
    )


def _domain_reasons(domain: dict[str, Difference], gained: float) -> list[str]:
    reasons = [
        f"{name} is worse by {-one.better_by:.4f}, more than noise" for name, one in domain.items() if _is_worse(one)
    ]
    if gained <= 0:
        reasons.append(f"the domain is not better: {gained:+.4f} in the mean of {', '.join(domain)}")
    elif all(one.is_noise for one in domain.values()):
        reasons.append(f"the domain's gain of {gained:+.4f} may be noise; measure more samples")
    return reasons


def _is_worse(one: Difference) -> bool:
    return one.better_by < 0 and not one.is_noise
