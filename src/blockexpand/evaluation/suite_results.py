"""Suites, run by lm-evaluation-harness: what it found, as samples and figures.

In: the harness's tasks, a model as it is asked, a place for its cache. Out: a line for each sample and a figure for
each task. What the cache knows is not asked again. A sample that a server did not answer is an error, never a wrong
answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blockexpand.evaluation.harness import SEED, Options, Part, Work
from blockexpand.evaluation.lm import EndpointLM, LoadedLM, Unanswered
from blockexpand.evaluation.scorers.code import unsafe_programs
from blockexpand.evaluation.suites import HarnessTask
from blockexpand.records.evaluation import PartScore, Sample, TaskScore
from blockexpand.records.intervals import LEAST_PAIRS, wilson

if TYPE_CHECKING:
    from lm_eval.api.model import LM


def run_suites(
    works: Sequence[Work], lm: LM, options: Options, cache: Path | None
) -> tuple[dict[str, TaskScore], dict[str, list[Sample]]]:
    """Ask, filter and score the tasks of all suites, by the harness.

    Raises:
        EvaluationError: the model cannot be asked so.
    """
    import torch
    from lm_eval.api.model import CachingLM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    tasks: list[Any] = [part.task for work in works for part in work.parts]
    torch.manual_seed(SEED)  # of outputs that are drawn
    # Its own bars, one for each of MMLU's 57, are swallowed; ours go to the terminal by another way.
    with unsafe_programs(options.unsafe), _without_bars():
        found = evaluate(
            CachingLM(lm, f"{cache}.db") if cache else lm,
            TaskManager(include_defaults=False).load(tasks),
            limit=options.limit,
            apply_chat_template=options.chat and not isinstance(lm, EndpointLM),
            log_samples=True,
            bootstrap_iters=0,
            confirm_run_unsafe_code=True,
        )
    logged: dict[str, list[dict[str, Any]]] = found["samples"] if found is not None else {}
    scores, samples = {}, {}
    for work in works:
        parts = {
            part.name: [_sample(part, one, lm) for one in logged[part.name] if one["filter"] == work.entry.filter]
            for part in work.parts
        }
        name = work.entry.task
        scores[name] = _figure(work, parts)
        samples[name] = [one for some in parts.values() for one in some]
    return scores, samples


@contextlib.contextmanager
def _without_bars() -> Any:
    """The harness draws with tqdm on standard error; what it cannot be told to leave out is not shown."""
    import tqdm

    before = tqdm.tqdm.__init__

    def silent(self: Any, *arguments: Any, **named: Any) -> None:
        before(self, *arguments, **(named | {"disable": True}))

    tqdm.tqdm.__init__ = silent
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.tqdm.__init__ = before


def _sample(part: Part, one: dict[str, Any], lm: LM) -> Sample:
    answers = [answer for some in one["resps"] for answer in some]
    error = next((answer.error for answer in answers if isinstance(answer, Unanswered)), None)
    asked = [arguments[0] for arguments in one["arguments"]]
    return Sample(
        part=part.name,
        number=one["doc_id"],
        document=one["doc_hash"],
        prompt=one["prompt_hash"],
        output=[answer[0] if isinstance(answer, tuple) else str(answer) if error else answer for answer in answers],
        scores={} if error else {name: _jsonable(one[name]) for name in one["metrics"]},
        cut_tokens=max((lm.cut_tokens.get(text, 0) for text in asked), default=0) if isinstance(lm, LoadedLM) else 0,
        error=error,
        route=lm.routes.get((part.name, one["doc_id"])) if isinstance(lm, LoadedLM) else None,
    )


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_plain_number))


def _plain_number(value: Any) -> Any:
    """A number of numpy's as Python has it; whatever else a row may hold, as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _figure(work: Work, samples: dict[str, list[Sample]]) -> TaskScore:
    entry, first = work.entry, work.parts[0]
    every = [one for some in samples.values() for one in some]
    counted = [one for one in every if one.error is None]
    parts = {part.name: _part_score(entry.metric, part, samples[part.name]) for part in work.parts}
    value = aggregate(entry.metric, first, counted)
    over_tasks = isinstance(entry, HarnessTask) and entry.mean == "tasks"
    if over_tasks:
        answered = [one.value for one in parts.values() if one.value is not None]
        value = sum(answered) / len(answered) if answered else None
    low, high = (None, None) if over_tasks else _interval([one.scores[entry.metric] for one in counted])
    others = {name for one in counted for name in one.scores} - {entry.metric}
    chances = [one.chance for one in counted if one.chance is not None]
    return TaskScore(
        suite=work.file.suite.suite,
        suite_version=work.file.suite.version,
        side=work.file.side_of(entry),
        metric=entry.metric,
        value=value,
        higher_is_better=bool(first.task.higher_is_better().get(entry.metric, True)),
        mean=entry.mean if isinstance(entry, HarnessTask) else "samples",
        low=low,
        high=high,
        chance=sum(chances) / len(chances) if chances else None,
        shots=first.shots,
        num_samples=len(counted),
        num_errors=len(every) - len(counted),
        num_cut=sum(one.cut_tokens > 0 for one in every),
        others={name: found for name in sorted(others) if (found := aggregate(name, first, counted)) is not None},
        parts=parts,
    )


def _part_score(metric: str, part: Part, samples: list[Sample]) -> PartScore:
    counted = [one for one in samples if one.error is None]
    return PartScore(
        value=aggregate(metric, part, counted),
        num_samples=len(counted),
        version=part.version,
        source=part.source,
        digest=part.digest,
    )


def aggregate(metric: str, part: Part, samples: Sequence[Sample]) -> float | None:
    """The harness's figure over samples; none over no samples."""
    values = [one.scores[metric] for one in samples if metric in one.scores]
    if not values:
        return None
    how = part.task.aggregation().get(metric)
    return float(how(values)) if how is not None else sum(values) / len(values)


def _interval(values: list[Any]) -> tuple[float | None, float | None]:
    """The 95 % interval of a mean over samples: Wilson's of right and wrong, else the normal one of enough samples."""
    if not values or not all(isinstance(value, int | float) for value in values):
        return None, None
    mean = sum(values) / len(values)
    if set(values) <= {0, 1}:
        return wilson(sum(values), len(values))
    if len(values) < LEAST_PAIRS:
        return None, None
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return mean - 1.96 * error, mean + 1.96 * error
