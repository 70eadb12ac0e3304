"""Two models judged in pairs: wins, ties and losses as tables and figure, and every conversation side by side.

In: folders that `judge` left. Out: a table of counts and rates, one of questions for each run, a figure, and for each
run a page with both sides' conversations turn by turn; on the main page the first win, loss and tie of each. A judge
looks at whole conversations, so no turn has a verdict of its own: counts are by how many turns a question has.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockexpand.records.judge import Judgement, JudgeRun, PairOutcome, Question, Reply, Tally, outcome_of, tally
from blockexpand.reporting import formats
from blockexpand.reporting.methods import MARKERS, NUM_COLOURS
from blockexpand.reporting.plotting import (
    MUTED,
    Figure,
    Words,
    colour_of,
    legend_height,
    make_figure,
    row_name,
    show_legend,
)
from blockexpand.reporting.sources import Found
from blockexpand.reporting.tables import Column, Spread, Table, Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

JUDGED_RULE = (
    "Of each comparison, in the order of the questions: the first that the first model won, the first that it lost, "
    "and the first tie."
)
_SAYS = {"first": "the first", "second": "the second", "tie": "tie", "": "none"}


@dataclass(frozen=True, kw_only=True)
class Look:
    """The judge's view of a conversation in one order."""

    order: str
    says: str
    """Which model it prefers."""
    text: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One question, both sides, both looks."""

    heading: str
    outcome: PairOutcome
    """For the first model."""
    turns: tuple[tuple[str, str, str], ...]
    """What was asked, what the first model answered, what the second did."""
    reference: tuple[str, ...]
    looks: tuple[Look, ...]


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """All conversations of one comparison."""

    label: str
    file: str
    """The page they are on, beside the main one."""
    about: str
    all: tuple[Conversation, ...]
    chosen: tuple[Conversation, ...]


def judged_sentence(runs: Sequence[Found[JudgeRun]]) -> str:
    """What the last comparison came to, for the top of a page that holds nothing else."""
    record = runs[-1].value.record
    whole = record.tallies[0]
    names = f"{record.settings.first.model} against {record.settings.second.model}"
    if whole.win_rate is None:
        return f"{names}: nothing could be judged; all {formats.count(whole.num_errors)} questions ended in errors."
    sides = (
        f"{names}: {_counted(whole.num_wins, 'win')}, {_counted(whole.num_losses, 'loss')}, "
        f"{_counted(whole.num_ties, 'tie')}; a win rate of {formats.share(whole.win_rate)}"
    )
    span = f"{formats.share(whole.low).removesuffix(' %')} to {formats.share(whole.high)}"
    if whole.low <= 0.5 <= whole.high:
        return f"{sides}, but its 95 % interval ({span}) includes one half: neither is called better."
    better = record.settings.first.model if whole.low > 0.5 else record.settings.second.model
    return f"{sides} (95 % interval {span}): the judge prefers {better}."


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 'es' if word == 'loss' else 's'}"


def judged_table(runs: Sequence[Found[JudgeRun]]) -> Table | None:
    """Wins, ties, losses and the win rate: over all questions, by category, by number of turns."""
    if not runs:
        return None
    rows: list[tuple[Value, ...]] = []
    for found in runs:
        for name, one in _rows(found.value):
            rate = None if one.win_rate is None else Spread(value=one.win_rate, low=one.low, high=one.high)
            counts = (one.num_wins, one.num_ties, one.num_losses, one.num_disagreements, one.num_errors)
            rows.append((found.label, name, rate, *counts))
    columns = (
        Column(key="run", title="Comparison"),
        Column(key="questions", title="Questions"),
        Column(key="win_rate", title="Win rate", kind="share", spread=True, unit="of the first model"),
        Column(key="num_wins", title="Won", kind="count"),
        Column(key="num_ties", title="Tied", kind="count"),
        Column(key="num_losses", title="Lost", kind="count"),
        Column(key="num_disagreements", title="Orders differ", kind="count", unit="of the ties"),
        Column(key="num_errors", title="Errors", kind="count", unit="not counted"),
    )
    sides = "; ".join(f"{found.label}: {_about(found.value)}" for found in runs)
    notes = (
        f"{sides}. The judge saw every conversation twice, with the models in both orders; a win needs both looks, and "
        "where they differ it is a tie. A tie is half a win in the rate; intervals are Wilson\u2019s, 95 %, over the "
        "questions. Conversations were judged as a whole, so single turns have no verdict.",
    )
    return Table(name="judged", title="Who was preferred", columns=columns, rows=tuple(rows), notes=notes)


def _rows(run: JudgeRun) -> list[tuple[str, Tally]]:
    """Counts by name: all, each category, and each number of turns where there are several."""
    named = [(one.category or "all questions", one) for one in run.record.tallies]
    lengths = sorted({len(question.turns) for question in run.questions})
    for length in lengths if len(lengths) > 1 else ():
        chosen = [question for question in run.questions if len(question.turns) == length]
        named.append((f"of {length} turn{'s' if length > 1 else ''}", tally(chosen, run.judgements)[0]))
    return named


def _about(run: JudgeRun) -> str:
    settings = run.record.settings
    return f"{settings.first.model} (the first) against {settings.second.model}, judged by {settings.judge.model}"


def questions_tables(runs: Sequence[Found[JudgeRun]]) -> list[Table]:
    """What came of each question, a table for each comparison."""
    return [_questions_table(found, number) for number, found in enumerate(runs, 1)]


def _questions_table(found: Found[JudgeRun], number: int) -> Table:
    rows = tuple(
        (str(question.question_id), question.category, len(question.turns), *map(_said, looks), outcome_of(*looks))
        for question, looks in _looked(found.value)
    )
    columns = (
        Column(key="question_id", title="Question"),
        Column(key="category", title="Category"),
        Column(key="num_turns", title="Turns", kind="count"),
        Column(key="straight", title="Preferred", unit="the first model shown first"),
        Column(key="swapped", title="Preferred", unit="shown second"),
        Column(key="outcome", title="For the first model"),
    )
    name = "judged-questions" if number == 1 else f"judged-questions-{number}"
    return Table(name=name, title=f"Question by question: {found.label}", columns=columns, rows=rows)


def _said(look: Judgement) -> str:
    return _SAYS[look.verdict]


def _looked(run: JudgeRun) -> list[tuple[Question, tuple[Judgement, Judgement]]]:
    looks = {(one.question_id, one.swapped): one for one in run.judgements}
    return [(q, (looks[q.question_id, False], looks[q.question_id, True])) for q in run.questions]


def judged_figure(runs: Sequence[Found[JudgeRun]]) -> Figure | None:
    """Win rates with intervals, a row for each of the table's, against one half."""
    named = list(dict.fromkeys(name for found in runs for name, one in _rows(found.value) if one.win_rate is not None))
    if not named:
        return None
    told = "; ".join(
        f"{found.label}, {name}: {formats.write('share', one.win_rate)}"
        for found in runs
        for name, one in _rows(found.value)
    )
    words = Words(
        name="judged",
        title="How often the first model was preferred",
        caption="Wins and half of the ties, over all conversations that could be judged, with Wilson\u2019s 95 % "
        "intervals. An interval that crosses the line at one half says nothing.",
        alt=f"Win rate of the first model. {told}.",
    )
    heights = legend_height([found.label for found in runs])
    rows = 90 + 34 * len(named)
    return make_figure(words, functools.partial(_draw, runs, named), (rows + heights[0], rows + heights[1]))


def _draw(runs: Sequence[Found[JudgeRun]], named: Sequence[str], canvas: Canvas, narrow: bool) -> None:
    axes = canvas.subplots()
    axes.axvline(50, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    for number, found in enumerate(runs):
        shift = 0.16 * (number - (len(runs) - 1) / 2)
        for row, (name, one) in enumerate((n, o) for n, o in _rows(found.value) if o.win_rate is not None):
            rate = 100 * (one.win_rate or 0.0)
            axes.errorbar(
                [rate],
                [named.index(name) + shift],
                xerr=[[rate - 100 * one.low], [100 * one.high - rate]],
                color=colour_of(number % NUM_COLOURS),
                marker=MARKERS[number % len(MARKERS)],
                markersize=7,
                elinewidth=1.4,
                capsize=3,
                label=found.label if row == 0 else None,
            )
    axes.set_yticks(range(len(named)), [row_name(name, narrow) for name in named])
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.set_xlim(-3, 103)
    axes.set_xlabel("win rate of the first model (%)")
    show_legend(canvas, axes, narrow)


def conversations(runs: Sequence[Found[JudgeRun]]) -> tuple[Conversations, ...]:
    """Both sides of every conversation of every comparison."""
    return tuple(_conversations(found, number) for number, found in enumerate(runs, 1))


def _conversations(found: Found[JudgeRun], number: int) -> Conversations:
    run = found.value
    answers = zip(_looked(run), run.first, run.second, strict=True)
    shown = tuple(_conversation(question, looks, one, two) for (question, looks), one, two in answers)
    chosen = [next((one for one in shown if one.outcome == outcome), None) for outcome in ("win", "loss", "tie")]
    return Conversations(
        label=found.label,
        file=f"judged-{number}.html",
        about=f"{_about(run)}; {len(shown):,} questions",
        all=shown,
        chosen=tuple(one for one in chosen if one is not None),
    )


def _conversation(question: Question, looks: tuple[Judgement, Judgement], first: Reply, second: Reply) -> Conversation:
    turns = tuple(
        (asked, _answer(first, number), _answer(second, number)) for number, asked in enumerate(question.turns)
    )
    return Conversation(
        heading=f"{question.category} {question.question_id}".strip(),
        outcome=outcome_of(*looks),
        turns=turns,
        reference=question.reference,
        looks=tuple(
            Look(order=order, says=_said(look), text=look.text, error=look.error)
            for order, look in zip(("the first model shown first", "the first model shown second"), looks, strict=True)
        ),
    )


def _answer(side: Reply, turn: int) -> str:
    """What a side said in a turn, or why it said nothing."""
    return side.turns[turn] if turn < len(side.turns) else f"(no answer: {side.error})"
