"""Runs of agents: success by budget of turns as table and figure, and every transcript to read.

In: folders that `agent` left. Out: a table, a figure, and for each run a page of transcripts in the order of the tasks;
on the main page one solved and one unsolved episode of each set, by a rule that nobody chooses by hand.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockexpand.records.agents import AgentRun, Episode, Task, Turn
from blockexpand.reporting import formats
from blockexpand.reporting.methods import MARKERS, NUM_COLOURS
from blockexpand.reporting.plotting import Figure, Words, colour_of, legend_height, make_figure, show_legend
from blockexpand.reporting.sources import Found
from blockexpand.reporting.tables import Column, Spread, Table, Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

EPISODE_RULE = (
    "Of each set, in the order of the tasks and at the largest budget: the first episode that was solved and the first "
    "that was not."
)
_ENDS = {
    "solved": "solved",
    "proposals": "not solved: all proposals used",
    "turns": "not solved: all turns used",
    "context": "not solved: the model's context was full",
    "error": "no result: an error of the server",
}


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One episode as it is shown."""

    heading: str
    prompt: str
    reference: str
    turns: tuple[Turn, ...]
    end: str
    error: str
    solved: bool


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """All episodes of one run."""

    label: str
    file: str
    """The page they are on, beside the main one."""
    about: str
    all: tuple[Transcript, ...]
    chosen: tuple[Transcript, ...]


def agents_sentence(runs: Sequence[Found[AgentRun]]) -> str:
    """What the last run came to, for the top of a page that holds nothing else."""
    rates = [one for one in runs[-1].value.record.rates if not one.set]
    best = rates[-1]
    turns = f"{best.budget} turn{'s' if best.budget > 1 else ''}"
    return (
        f"{runs[-1].label} solved {formats.share(best.rate)} of {formats.count(best.num_tasks)} tasks within {turns}."
    )


def episodes_table(runs: Sequence[Found[AgentRun]]) -> Table | None:
    """Success rates: a row for each run, set and budget."""
    if not runs:
        return None
    rows: list[tuple[Value, ...]] = []
    for found in runs:
        for one in found.value.record.rates:
            rate = Spread(value=one.rate, low=one.low, high=one.high) if one.num_tasks else None
            rows.append(
                (found.label, one.set or "all tasks", one.budget, rate, one.num_solved, one.num_tasks, one.num_errors)
            )
    columns = (
        Column(key="agent", title="Agent"),
        Column(key="set", title="Tasks"),
        Column(key="budget", title="Turns", kind="count", unit="at most"),
        Column(key="rate", title="Solved", kind="share", spread=True),
        Column(key="num_solved", title="Solved", kind="count", unit="tasks"),
        Column(key="num_tasks", title="of", kind="count", unit="tasks"),
        Column(key="num_errors", title="Errors", kind="count", unit="not counted"),
    )
    notes = (
        "Each budget was tried from nothing. Intervals are Wilson's, 95 %, over the tasks. Episodes that a server's "
        "error ended say nothing about the model and are not counted.",
    )
    return Table(name="agents", title="Solved within so many turns", columns=columns, rows=tuple(rows), notes=notes)


def episodes_figure(runs: Sequence[Found[AgentRun]]) -> Figure | None:
    """Success over the budget of turns, a line a run, with intervals."""
    if not runs:
        return None
    told = []
    for found in runs:
        rates = [one for one in found.value.record.rates if not one.set]
        told.append(f"{found.label}: " + ", ".join(f"{formats.share(r.rate)} in {r.budget}" for r in rates))
    words = Words(
        name="agents",
        title="What more turns are worth",
        caption="The share of tasks solved within a budget of turns, each budget tried from nothing, with Wilson's "
        "95 % intervals over the tasks.",
        alt="Share of tasks solved by budget of turns. " + "; ".join(told) + ".",
    )
    heights = legend_height([found.label for found in runs])
    return make_figure(words, functools.partial(_draw, runs), (300 + heights[0], 280 + heights[1]))


def _draw(runs: Sequence[Found[AgentRun]], canvas: Canvas, narrow: bool) -> None:
    axes = canvas.subplots()
    budgets = sorted({one.budget for found in runs for one in found.value.record.rates})
    for number, found in enumerate(runs):
        rates = [one for one in found.value.record.rates if not one.set and one.num_tasks]
        # Side by side, so that intervals of the same height can be told apart.
        shift = 0.03 * (number - (len(runs) - 1) / 2)
        below = [100 * (one.rate - one.low) for one in rates]
        above = [100 * (one.high - one.rate) for one in rates]
        axes.errorbar(
            [one.budget + shift for one in rates],
            [100 * one.rate for one in rates],
            yerr=[below, above],
            color=colour_of(number % NUM_COLOURS),
            marker=MARKERS[number % len(MARKERS)],
            markersize=7,
            linewidth=1.8,
            elinewidth=1.2,
            capsize=3,
            label=found.label,
        )
    axes.set_xticks(budgets)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("turns at most")
    axes.set_ylabel("tasks solved (%)")
    show_legend(canvas, axes, narrow)


def transcripts(runs: Sequence[Found[AgentRun]]) -> tuple[Transcripts, ...]:
    """The transcripts of every run."""
    return tuple(_transcripts(found, number) for number, found in enumerate(runs, 1))


def _transcripts(found: Found[AgentRun], number: int) -> Transcripts:
    run = found.value
    tasks = {(task.set, task.id): task for task in run.tasks}
    record = run.record
    where = f" at {record.settings.speaker.endpoint}" if record.settings.speaker.endpoint else ""
    adviser = record.settings.adviser
    advised = f", with {record.settings.manner.feedback} feedback by {adviser.model}" if adviser else ""
    return Transcripts(
        label=found.label,
        file=f"transcripts-{number}.html",
        about=f"{record.settings.speaker.model}{where}{advised}; {len(run.episodes):,} episodes",
        all=tuple(_transcript(tasks[one.set, one.id], one) for one in run.episodes),
        chosen=tuple(_transcript(tasks[one.set, one.id], one) for one in _chosen(run)),
    )


def _chosen(run: AgentRun) -> list[Episode]:
    largest = max(run.record.settings.budgets)
    mine = [one for one in run.episodes if one.budget == largest and one.end != "error"]
    chosen = []
    for name in dict.fromkeys(one.set for one in mine):
        for solved in (True, False):
            first = next((one for one in mine if one.set == name and one.solved is solved), None)
            chosen += [] if first is None else [first]
    return chosen


def _transcript(task: Task, episode: Episode) -> Transcript:
    return Transcript(
        heading=f"{task.set} {task.id}, {episode.budget} turn{'s' if episode.budget > 1 else ''} at most",
        prompt=task.prompt,
        reference=task.reference,
        turns=episode.turns,
        end=_ENDS.get(episode.end, episode.end),
        error=episode.error,
        solved=episode.solved,
    )
