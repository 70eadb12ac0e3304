"""Two models on the same samples: paired differences, and a verdict by a forgetting budget.

In: two folders of records. Out: for each task and each held-out loss the difference with its interval, what was lost
and gained sample by sample; with a budget, whether the domain became better and everything general stayed within it.
Refused: records of other samples, metrics or suites, and a verdict over nothing general or nothing of the domain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from blockexpand.errors import EvaluationError
from blockexpand.records import check
from blockexpand.records.budget import BudgetStatement, say_budget
from blockexpand.records.evaluation import (
    Difference,
    Flips,
    Sample,
    Side,
    TaskScore,
    Unit,
    Verdict,
    read_evaluation,
    read_samples,
)
from blockexpand.records.intervals import LEAST_PAIRS, ratio_difference

# M = samples that both models answered, or documents.


def side_of_corpus(name: str) -> Side:
    """A corpus is of the domain, unless it is named general: `general`, `general-chats`."""
    return "general" if name == "general" or name.startswith("general-") else "domain"


def check_sides(sides: Iterable[Side]) -> None:
    """Whether a verdict can come of what is to be measured; asked before anything is.

    Raises:
        EvaluationError: one of the two sides is missing.
    """
    given = set(sides)
    wanted: tuple[Side, ...] = ("general", "domain")
    for side in wanted:
        if side not in given:
            advice = "--data general=folder" if side == "general" else "--data NAME=folder"
            raise EvaluationError(
                f"no verdict: nothing {side} is measured; expected at least one corpus or suite of each side; add a "
                f"{side} suite, or {advice}"
            )


def check_comparable(folder: Path, corpora: Mapping[str, str], tasks: Mapping[str, int], limit: int | None) -> None:
    """Whether records can be compared with what is to be measured; asked before anything is.

    Args:
        folder: The records.
        corpora: The digest of each corpus that is to be measured.
        tasks: The version of the suite of each task that is to be run.
        limit: How much of each.

    Raises:
        EvaluationError: they are of other documents, another version or limit, or have nothing in common with it.
    """
    record = read_evaluation(folder).record
    theirs = {name: one.suite_version for name, one in record.suites.tasks.items()} if record.suites else {}
    for name in corpora.keys() & record.corpora.keys():
        if corpora[name] != record.corpora[name]:
            raise EvaluationError(
                f"the corpus {name!r} is another than the one of {folder} ({corpora[name][:19]}..., "
                f"{record.corpora[name][:19]}...); expected the same documents; evaluate both on one corpus"
            )
    for name in tasks.keys() & theirs.keys():
        if tasks[name] != theirs[name]:
            raise EvaluationError(
                f"{name}: the suite has version {tasks[name]}, {folder} was measured with {theirs[name]}; evaluate "
                "both with one version"
            )
    if limit != record.limit:
        raise EvaluationError(f"--limit is {limit}, {folder} was measured with {record.limit}; evaluate both with one")
    if not (corpora.keys() & record.corpora.keys() or tasks.keys() & theirs.keys()):
        known = ", ".join([*record.corpora, *theirs]) or "nothing of the kind"
        raise EvaluationError(
            f"{folder} has nothing in common with {', '.join([*corpora, *tasks])}: it has {known}; measure the same"
        )


def compare_records(ours: str | Path, theirs: str | Path) -> dict[str, Difference]:
    """The paired differences of two folders of records, ours minus theirs, by task or corpus.

    Raises:
        EvaluationError: they were not measured on the same samples in the same way, or share nothing.
    """
    a, b = read_evaluation(ours), read_evaluation(theirs)
    mine, other = (one.record.suites.tasks if one.record.suites else {} for one in (a, b))
    versions = {name: one.suite_version for name, one in mine.items()}
    check_comparable(Path(theirs), a.record.corpora, versions, a.record.limit)
    found: dict[str, Difference] = {}
    for name in sorted(a.losses.keys() & b.losses.keys()):
        pairs = a.losses[name].nats_M, b.losses[name].nats_M, a.losses[name].tokens_M.astype(float)
        found[name] = _difference(side_of_corpus(name), "nats/token", pairs)
    for name in sorted(mine.keys() & other.keys()):
        found[name] = _task(name, (mine[name], other[name]), (Path(ours), Path(theirs)))
    return found


def _difference(
    side: Side | None,
    unit: Unit,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    *,
    num_unanswered: int = 0,
    flips: Flips | None = None,
) -> Difference:
    """Of both models' numerators and the common denominators [M]: the figure is sum over sum."""
    ours_M, theirs_M, weights_M = pairs
    total = float(weights_M.sum())
    ours, theirs = float(ours_M.sum()) / total, float(theirs_M.sum()) / total
    enough = len(ours_M) >= LEAST_PAIRS
    return Difference(
        side=side,
        unit=unit,
        ours=ours,
        theirs=theirs,
        interval=ratio_difference(ours_M, theirs_M, weights_M) if enough else None,
        num_pairs=len(ours_M),
        num_unanswered=num_unanswered,
        better_by=ours - theirs if unit == "share" else 1 - ours / theirs,
        flips=flips,
    )


def flips_of(ours_M: np.ndarray, theirs_M: np.ndarray, chance_M: np.ndarray) -> Flips:
    """What was right before and is wrong now, and the reverse, and how much of either guessing alone would give.

    A share k of the samples is known, the others are guessed, right with the chance c: a share right of k + (1 - k) c.
    At least 1 - max(k before, k now) of them were guessed both times; of these, guesses that have nothing to do with
    each other go from right to wrong, and the reverse, in c (1 - c) of the cases. Models that guess alike lose fewer;
    what is lost beyond `by_chance` is lost knowledge.
    """
    chance = float(chance_M.mean())
    known = max((float(right_M.mean()) - chance) / (1 - chance) for right_M in (ours_M, theirs_M))
    return Flips(
        num_right_before=int(theirs_M.sum()),
        num_lost=int(((theirs_M == 1) & (ours_M == 0)).sum()),
        num_gained=int(((theirs_M == 0) & (ours_M == 1)).sum()),
        by_chance=len(ours_M) * (1 - min(max(known, 0.0), 1.0)) * chance * (1 - chance),
    )


def _task(name: str, scores: tuple[TaskScore, TaskScore], folders: tuple[Path, Path]) -> Difference:
    ours = scores[0]
    same = [(one.metric, one.shots, one.mean) for one in scores]
    for field, one, other in zip(("metric", "shots", "mean"), *same, strict=True):
        if one != other:
            raise EvaluationError(
                f"{name}: {folders[0]} has {field} {one!r}, {folders[1]} has {other!r}; evaluate both in the same way"
            )
    pairs, num_unanswered = _pairs(name, folders)
    if not pairs:
        raise EvaluationError(f"{name}: not one sample was answered by both models; resume or repeat the evaluation")
    a_M, b_M, weights_M = _values(ours, pairs)
    unit: Unit = "bits/byte" if ours.metric == "bits_per_byte" else "share"
    flips = None
    if unit == "share" and {_number(ours.metric, one) for pair in pairs for one in pair} <= {0.0, 1.0}:
        rights = np.array([[_number(ours.metric, one) for one in pair] for pair in pairs])
        flips = flips_of(rights[:, 0], rights[:, 1], np.array([one.chance or 0.0 for one, _ in pairs]))
    return _difference(ours.side, unit, (a_M, b_M, weights_M), num_unanswered=num_unanswered, flips=flips)


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


def state_budget(ours: str | Path, theirs: str | Path, budget: float) -> BudgetStatement | None:
    """What can be promised of the general corpora's losses in two folders of records; none where there is none.

    Raises:
        TrainingError: there are fewer than two documents, or a loss is no number.
    """
    from blockexpand.training.budget import DocumentSums, state

    a, b = read_evaluation(ours), read_evaluation(theirs)
    names = [name for name in a.losses.keys() & b.losses.keys() if side_of_corpus(name) == "general"]
    names = sorted(name for name in names if len(a.losses[name].nats_M) > 1)
    if not names:
        return None
    base = {name: DocumentSums(losses_N=b.losses[name].nats_M, tokens_N=b.losses[name].tokens_M) for name in names}
    return state(base, {name: a.losses[name].nats_M for name in names}, dict.fromkeys(names, budget))


def judge(found: dict[str, Difference], budget: float, statement: BudgetStatement | None = None) -> Verdict:
    """Whether the domain is better and everything general is within `budget`.

    The domain is better when the mean of its differences is above 0, one of them at least is more than noise, and none
    is worse by more than noise. Something general is within the budget when it lost no more: of a share of right
    answers in itself, of a loss as a share of theirs; of losses of general text the statement's bound must be inside.
    A sample that a server did not answer spoils the verdict.

    Raises:
        EvaluationError: nothing of one of the two sides was measured.
    """
    check(0 <= budget < 1, "budget", budget, "0 or more and below 1, e.g. 0.01")
    general = {name: one for name, one in found.items() if one.side == "general"}
    domain = {name: one for name, one in found.items() if one.side == "domain"}
    check_sides(one.side for one in found.values() if one.side is not None)
    gained = sum(one.better_by for one in domain.values()) / len(domain)
    reasons = [
        f"{name} lost {-100 * one.better_by:.2f} {_measure(one)}, more than the budget of {100 * budget:g}"
        for name, one in general.items()
        if -one.better_by > budget
    ]
    if statement is not None and not statement.holds:
        reasons.append(say_budget(statement))
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
        statement=statement,
    )


def _measure(one: Difference) -> str:
    return "points" if one.unit == "share" else "%"


def _domain_reasons(domain: dict[str, Difference], gained: float) -> list[str]:
    reasons = [
        f"{name} is worse by {-100 * one.better_by:.2f} {_measure(one)}, more than noise"
        for name, one in domain.items()
        if one.better_by < 0 and not one.is_noise
    ]
    if gained <= 0:
        reasons.append(f"the domain is not better: {100 * gained:+.2f} in the mean of {', '.join(domain)}")
    elif all(one.is_noise for one in domain.values()):
        reasons.append(f"the domain's gain of {100 * gained:+.2f} may be noise; measure more samples")
    return reasons
