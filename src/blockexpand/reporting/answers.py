"""Answers before and after, by task and side by side.

In: evaluations that asked the same questions, the first of them "before". Out: a table of shares with paired
differences, and samples chosen by a rule that is stated on the page: for each task, in the order of the
questions, the first that the last model got right and the first that it got wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockexpand.records.evaluation import Evaluation
from blockexpand.records.intervals import mean_difference
from blockexpand.reporting.sources import Found
from blockexpand.reporting.tables import Column, Spread, Table, Value, spread_of

_LONGEST = 240
"""Characters of a question or an answer that are shown: a page is not a dump."""
_FEWEST = 10
"""Questions below which a difference is not put into words: their bootstrap is too coarse."""

RULE = (
    "For each task, in the order of the questions: the first one that the last model answered rightly and the first "
    "that it answered wrongly."
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question and what each model said."""

    task: str
    prompt: str
    answer: str
    """The right one."""
    outputs: tuple[tuple[str, str, bool], ...]
    """Each model's label, its words, and whether they are right."""


def answering(evaluations: Sequence[Found[Evaluation]]) -> tuple[Found[Evaluation], ...]:
    """Those that answered the questions which the first of them was asked."""
    having = [found for found in evaluations if found.value.answered]
    return tuple(one for one in having if _questions(one) == _questions(having[0]))


def _questions(found: Found[Evaluation]) -> list[tuple[str, str, str]]:
    return [(one.task, one.prompt, one.answer) for one in found.value.answered]


def answers_table(evaluations: Sequence[Found[Evaluation]]) -> Table:
    """Shares of right answers by task; with two or more models, the last against the first."""
    labels = [found.label for found in evaluations]
    rights = [[one.right for one in found.value.answered] for found in evaluations]
    tasks = [one.task for one in evaluations[0].value.answered]
    paired = len(evaluations) > 1
    rows: list[tuple[Value, ...]] = []
    for name in ("", *sorted(set(tasks))):
        mine = [i for i, task in enumerate(tasks) if task == name or not name]
        columns = [[float(right[i]) for i in mine] for right in rights]
        row: list[Value] = [name or "all tasks", len(mine), *(sum(column) / len(mine) for column in columns)]
        if paired:
            spread = spread_of(mean_difference(columns[-1], columns[0]))
            row += [spread, _in_words(spread, len(mine))]
        rows.append(tuple(row))
    shares = [Column(key=f"right_{n}", title=label, kind="share", unit="right") for n, label in enumerate(labels)]
    compared = (
        Column(key="difference", title="Last against first", kind="points", spread=True),
        Column(key="says", title="which says"),
    )
    return Table(
        name="answers",
        title="Right answers by task",
        columns=(
            Column(key="task", title="Task"),
            Column(key="num_questions", title="Questions", kind="count"),
            *shares,
            *(compared if paired else ()),
        ),
        rows=tuple(rows),
        notes=(
            "Questions that were held out of the training; greedy answers; right only when equal to the letter. "
            f"Intervals are 95 %, paired over the questions; of fewer than {_FEWEST} questions nothing is claimed.",
        ),
    )


def _in_words(figure: Spread, num_questions: int) -> str:
    if num_questions < _FEWEST:
        return "too few questions"
    return "more right" if figure.low > 0 else "fewer right" if figure.high < 0 else "noise"


def samples(evaluations: Sequence[Found[Evaluation]]) -> tuple[Sample, ...]:
    """The samples that the rule chooses."""
    last = evaluations[-1].value.answered
    chosen: list[int] = []
    for task in sorted({one.task for one in last}):
        for wanted in (True, False):
            first = next((i for i, one in enumerate(last) if one.task == task and one.right is wanted), None)
            chosen += [] if first is None else [first]
    return tuple(_sample(evaluations, number) for number in chosen)


def _sample(evaluations: Sequence[Found[Evaluation]], number: int) -> Sample:
    asked = evaluations[0].value.answered[number]
    answered = [(found.label, found.value.answered[number]) for found in evaluations]
    return Sample(
        task=asked.task,
        prompt=_short(asked.prompt),
        answer=_short(asked.answer),
        outputs=tuple((label, _short(one.output) or "(nothing)", one.right) for label, one in answered),
    )


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\u2026"
