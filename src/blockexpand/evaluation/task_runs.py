"""Suites, run: questions to the model, answers to scores.

In: suites, a model as the harness asks it, a journal. Out: a line for each sample and a figure for each task. What the
journal knows is not asked again. A sample that a server did not answer is an error, never a wrong answer.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from blockexpand.digests import digest_json
from blockexpand.evaluation.harness import Options, Part, Work
from blockexpand.evaluation.journal import Given, Journal, key_of
from blockexpand.evaluation.scorers.code import unsafe_programs
from blockexpand.evaluation.suites import HarnessTask
from blockexpand.progress import Bar, bar
from blockexpand.records.agents import Task
from blockexpand.records.evaluation import PartScore, Sample, TaskScore

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from blockexpand.evaluation.lm import EndpointLM, LoadedLM

_SCORED_AT_ONCE = min(8, os.cpu_count() or 1)
"""Programs under test at a time."""


def run_task(
    work: Work, lm: LoadedLM | EndpointLM, journal: Journal, options: Options
) -> tuple[TaskScore, list[Sample]]:
    """Ask, filter and score one task.

    Raises:
        EvaluationError: the model cannot be asked so.
    """
    start = time.monotonic()
    task = work.entry.task
    requests = {part.name: _requests(part, lm, options) for part in work.parts}
    _ask(task, [one for some in requests.values() for one in some], lm, journal)
    samples: dict[str, list[Sample]] = {}
    for part in work.parts:
        given = [(one, [_take(task, one, journal) for _ in range(one.repeats or 1)]) for one in requests[part.name]]
        samples[part.name] = _scored(part, given, _Scorer(work.entry, part, journal, options.unsafe))
    figure = _figure(work, samples, time.monotonic() - start)
    return figure, [one for some in samples.values() for one in some]


def _requests(part: Part, lm: LoadedLM | EndpointLM, options: Options) -> list[Instance]:
    """The harness's questions for the first rows of a part."""
    templated = options.chat and _is_loaded(lm)
    with contextlib.redirect_stderr(io.StringIO()):  # its own bar, one for each of MMLU's 57
        part.task.build_all_requests(
            limit=options.limit,
            rank=0,
            world_size=1,
            apply_chat_template=templated,
            chat_template=lm.apply_chat_template if templated else None,
            tokenizer_name="",
        )
    return list(part.task.instances)


def _is_loaded(lm: LoadedLM | EndpointLM) -> bool:
    from blockexpand.evaluation.lm import EndpointLM

    return not isinstance(lm, EndpointLM)


def _key(task: str, request_type: str, arguments: Sequence[Any]) -> str:
    # How texts are generated is part of the journal's identity.
    shown = arguments[:1] if request_type == "generate_until" else arguments
    return key_of(task, request_type, shown)


def _ask(task: str, requests: list[Instance], lm: LoadedLM | EndpointLM, journal: Journal) -> None:
    """Ask what the journal has no answer to."""
    lm.meet(requests)
    left: dict[str, list[Instance]] = defaultdict(list)
    known: dict[str, int] = {}
    total = 0
    for one in requests:
        key = _key(task, one.request_type, one.args)
        known.setdefault(key, journal.num_answers(key))
        for _ in range(one.repeats or 1):
            total += 1
            if known[key]:
                known[key] -= 1
            else:
                left[one.request_type].append(one)
    with bar(task, total, "answers") as progress:
        progress.advance(total - sum(len(some) for some in left.values()))
        lm.heard = _listener(task, journal, progress)
        methods = {
            "loglikelihood": lm.loglikelihood,
            "loglikelihood_rolling": lm.loglikelihood_rolling,
            "generate_until": lm.generate_until,
        }
        for request_type, some in left.items():
            methods[request_type](some)


def _listener(task: str, journal: Journal, progress: Bar) -> Callable[..., None]:
    def heard(method: str, arguments: tuple, value: Any, **more: Any) -> None:
        journal.add(_key(task, method, arguments), method, value, **more)
        progress.advance(1)

    return heard


def _take(task: str, request: Instance, journal: Journal) -> Given:
    return journal.take(_key(task, request.request_type, request.args))


class _Scorer:
    """Scores by the harness's task; what a program scored is written down, so that none runs twice."""

    def __init__(self, entry: Task, part: Part, journal: Journal, unsafe: bool) -> None:
        self._entry, self._part, self._journal, self._unsafe = entry, part, journal, unsafe
        self.runs_programs = bool(part.task.config.unsafe_code)

    def __call__(self, number: int, instances: list[Instance], outputs: list[Any]) -> dict[str, Any]:
        results = [instance.filtered_resps[self._entry.filter] for instance in instances]
        doc = instances[0].doc
        if not self.runs_programs:
            return self._part.task.process_results(doc, results)
        key = key_of(self._entry.task, "score", [self._part.name, number, outputs])
        if self._journal.num_answers(key):
            return self._journal.take(key).value
        with unsafe_programs(self._unsafe):
            scores = self._part.task.process_results(doc, results)
        self._journal.add(key, "score", scores)
        return scores


def _scored(part: Part, given: list[tuple[Instance, list[Given]]], scorer: _Scorer) -> list[Sample]:
    """The samples of a part, filtered and scored by the harness's task."""
    for instance, answers in given:
        instance.resps = ["" if one.error else one.value for one in answers]
    part.task.apply_filters()
    by_row: dict[int, list[tuple[Instance, list[Given]]]] = defaultdict(list)
    for instance, answers in given:
        by_row[cast(int, instance.doc_id)].append((instance, answers))

    def score(number: int) -> Sample:
        some = sorted(by_row[number], key=lambda pair: pair[0].idx)
        answers = [one for _, more in some for one in more]
        error = next((one.error for one in answers if one.error), None)
        outputs = [one.value[0] if isinstance(one.value, tuple) else one.value for one in answers]
        scores = {} if error else scorer(number, [instance for instance, _ in some], outputs)
        return Sample(
            part=part.name,
            number=number,
            document=digest_json(_jsonable(some[0][0].doc)),
            prompt=digest_json([instance.args[0] for instance, _ in some]),
            output=outputs,
            scores={name: _jsonable(value) for name, value in scores.items()},
            seconds=sum(one.seconds for one in answers),
            cut_tokens=max(one.cut for one in answers),
            error=error,
            route=answers[0].route,
        )

    return list(_each(score, sorted(by_row), f"{part.name}: scores", at_once=scorer.runs_programs))


def _each(score: Callable[[int], Sample], numbers: list[int], title: str, *, at_once: bool) -> Iterator[Sample]:
    """One after the other, or several at a time where programs run in processes of their own."""
    if not at_once:
        yield from map(score, numbers)
        return
    with ThreadPoolExecutor(_SCORED_AT_ONCE) as pool, bar(title, len(numbers), "samples") as progress:
        for one in pool.map(score, numbers):
            progress.advance(1)
            yield one


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=_plain_number))


def _plain_number(value: Any) -> Any:
    """A number of numpy's as Python has it; whatever else a row may hold, as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _figure(work: Work, samples: dict[str, list[Sample]], seconds: float) -> TaskScore:
    entry, first = work.entry, work.parts[0]
    every = [one for some in samples.values() for one in some]
    counted = [one for one in every if one.error is None]
    parts = {part.name: _part_score(entry.metric, part, samples[part.name]) for part in work.parts}
    value = aggregate(entry.metric, first, counted)
    error = _standard_error([one.scores[entry.metric] for one in counted])
    if isinstance(entry, HarnessTask) and entry.mean == "tasks":
        answered = [one.value for one in parts.values() if one.value is not None]
        value, error = (sum(answered) / len(answered) if answered else None), None
    others = {name for one in counted for name in one.scores} - {entry.metric}
    return TaskScore(
        suite=work.chosen.suite.suite,
        suite_version=work.chosen.suite.version,
        side=work.chosen.side_of(entry),
        metric=entry.metric,
        value=value,
        higher_is_better=bool(first.task.higher_is_better().get(entry.metric, True)),
        mean=entry.mean if isinstance(entry, HarnessTask) else "samples",
        standard_error=error,
        shots=first.shots,
        num_samples=len(counted),
        num_errors=len(every) - len(counted),
        num_cut=sum(one.cut_tokens > 0 for one in every),
        others={name: found for name in sorted(others) if (found := aggregate(name, first, counted)) is not None},
        parts=parts,
        seconds=seconds,
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


def _standard_error(values: list[Any]) -> float | None:
    if len(values) < 2 or not all(isinstance(value, int | float) for value in values):
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
