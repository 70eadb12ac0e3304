"""What a row of tasks came to: chains of scores into the record that the page and the tables are made of.

In: a `SequenceResult`, the recipe, the base. Out: a `SequenceRecord`. With several seeds a figure's interval is over
seeds (Student's t); of one seed it is over held-out questions or general documents, and says nothing of other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blockexpand.comparison import ArmRecipe, PlanRecipe
from blockexpand.comparison.results import Summary, over_seeds
from blockexpand.evaluation.evaluating import model_digest
from blockexpand.records import to_plain
from blockexpand.records.intervals import Interval, ratio_difference, seeded_ratio_difference
from blockexpand.reporting.methods import trains_of
from blockexpand.reporting.sequences import (
    SequenceRecord,
    TaughtChain,
    TaughtContrast,
    TaughtMethod,
    TaughtTask,
)
from blockexpand.studies.recipe import MethodRecipe, StudyRecipe
from blockexpand.studies.sequence import Chain, SequenceResult
from blockexpand.studies.tasks import TASKS

# T = tasks, Q = held-out questions of a task, M = general test documents.


def record_of(found: SequenceResult, recipe: StudyRecipe, base: Path) -> SequenceRecord:
    """Everything that tables and page tell of a finished row of tasks."""
    sequence = recipe.sequence
    assert sequence is not None, "a row of tasks has settings"
    return SequenceRecord(
        title=recipe.title,
        question=recipe.question,
        paper=recipe.paper,
        base=base.resolve().name,
        base_digest=model_digest(base),
        base_general_loss=float(found.base_general_M.sum() / found.tokens_M.sum()),
        num_general_tokens=int(found.tokens_M.sum()),
        tokens_per_task=sequence.tokens_per_task,
        rehearses=sequence.retention.replay > 0,
        tasks=tuple(
            TaughtTask(
                name=name,
                like=TASKS[name].like,
                measure=TASKS[name].measure,
                base=float(found.base_TQ[t].mean()),
                num_train=sequence.num_train,
                num_test=sequence.num_test,
            )
            for t, name in enumerate(found.tasks)
        ),
        methods=tuple(_method(method, found) for method in found.methods),
        contrasts=tuple(_contrast(found, method) for method in found.methods[1:]),
        settings=to_plain(recipe),
    )


def _method(method: MethodRecipe, found: SequenceResult) -> TaughtMethod:
    chains = found.of(method.name)
    rises = [_rise(_general(chain, method), found) for chain in chains]
    return TaughtMethod(
        name=method.name,
        trains=_trains(method),
        lr=method.lr,
        packs=method.per_task,
        told=method.told,
        chains=tuple(_chain(chain, found.tokens_M) for chain in chains),
        op=_mean([chain.final_TQ for chain in chains]),
        bwt=_mean([chain.change_TQ for chain in chains]),
        rise=over_seeds(rises),
    )


def _trains(method: MethodRecipe) -> str:
    grown = None if method.blocks is None else PlanRecipe(blocks=method.blocks)
    words = trains_of(ArmRecipe(name=method.name, arm=method.arm, lrs=(method.lr,), plan=grown))
    return f"{words}, for each task a pack of them" if method.per_task else words


def _chain(chain: Chain, tokens_M: np.ndarray) -> TaughtChain:
    return TaughtChain(
        seed=chain.seed,
        matrix=tuple(tuple(map(float, row)) for row in chain.matrix_TT),
        general_losses=tuple(map(float, chain.general_TM.sum(axis=1) / tokens_M.sum())),
        num_trainable_parameters=chain.num_trainable_parameters,
        cpu_seconds=chain.cpu_seconds,
        runs=chain.runs,
        chosen=None if chain.chosen_TC is None else tuple(tuple(map(float, row)) for row in chain.chosen_TC),
    )


def _general(chain: Chain, method: MethodRecipe) -> np.ndarray:
    """[document]: nats of general text after the last task; of packs that are told, the mean over them, each on."""
    return chain.general_TM.mean(axis=0) if method.per_task and method.told else chain.general_TM[-1]


def _rise(general_M: np.ndarray, found: SequenceResult) -> Interval:
    rise = ratio_difference(general_M, found.base_general_M, found.tokens_M)
    scale = found.tokens_M.sum() / found.base_general_M.sum()
    return Interval(difference=rise.difference * scale, low=rise.low * scale, high=rise.high * scale)


def _mean(scores: Sequence[np.ndarray]) -> Summary:
    """The mean of [task, question] over questions, one array a seed."""
    return over_seeds([_ratio([one], [np.zeros_like(one)]) for one in scores])


def _ratio(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> Interval:
    """Paired over the held-out questions of all tasks, and over seeds; every task has as many questions."""
    sides = [[scores.flatten() for scores in side] for side in (ours, theirs)]
    return seeded_ratio_difference(sides[0], sides[1], np.ones(sides[0][0].shape))


def _contrast(found: SequenceResult, method: MethodRecipe) -> TaughtContrast:
    """The first method against this one."""
    first = found.methods[0]
    ours, theirs = found.of(first.name), found.of(method.name)
    return TaughtContrast(
        ours=first.name,
        theirs=method.name,
        op=_ratio([chain.final_TQ for chain in ours], [chain.final_TQ for chain in theirs]),
        bwt=_ratio([chain.change_TQ for chain in ours], [chain.change_TQ for chain in theirs]),
        general=seeded_ratio_difference(
            [_general(chain, first) for chain in ours],
            [_general(chain, method) for chain in theirs],
            found.tokens_M,
        ),
    )
