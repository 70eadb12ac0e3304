"""What models said: runs of agents, pairs that a judge compared.

In: folders that `agent` and `judge` left. Out: tables, rates to draw, and samples chosen by rules that the
page states. Every episode and conversation stands on a page of its own beside the main one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockexpand.records.agents import AgentRun, Episode, Task
from blockexpand.records.judge import Judgement, JudgeRun, PairOutcome, Tally, outcome_of
from blockexpand.reporting import formats
from blockexpand.reporting.sources import Found
from blockexpand.reporting.tables import Column, Spread, Table, Value

_LONGEST = 320
"""Characters of a question or an answer that are shown on the main page: it is not a dump."""

EPISODES_RULE = (
    "Of each set, in the order of the tasks and at the largest budget: the first episode that was solved and the first "
    "that was not."
)
JUDGED_RULE = (
    "In the order of the questions: the first that the first model won, the first that it lost, the first tie."
)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt and what each model said."""

    about: str
    prompt: str
    outputs: tuple[tuple[str, str, bool | None], ...]
    """Each model's name, its words, and whether they are right; None where nothing says so."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of an episode or conversation: who said it, and what."""

    who: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """One episode or one judged conversation."""

    heading: str
    outcome: str
    tone: str
    """good, bad, quiet or wary."""
    parts: tuple[Part, ...]


@dataclass(frozen=True, kw_only=True)
class Transcripts:
    """All of one run."""

    label: str
    file: str
    """The page they are on, beside the main one."""
    about: str
    all: tuple[Transcript, ...]
    chosen: tuple[Transcript, ...]


def _short(text: str) -> str:
    text = text.strip()
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\u2026") or "(nothing)"


# --- agents ----------------------------------------------------------------------------------------------

_ENDS = {
    "solved": "solved",
    "proposals": "not solved: all proposals used",
    "turns": "not solved: all turns used",
    "context": "not solved: the model's context was full",
    "error": "no result: an error of the server",
}
_SHOWN = {"execute": "What its code printed", "solution": "The check", "nothing": "The answer"}


def agents_sentence(runs: Sequence[Found[AgentRun]]) -> str:
    """What the last run came to."""
    best = [one for one in runs[-1].value.record.rates if not one.set][-1]
    if not best.num_tasks:
        return f"{runs[-1].label}: no task came to an end; all {best.num_errors} episodes ended in errors."
    solved = f"{formats.share(best.rate)} of {formats.count(best.num_tasks)} tasks"
    return f"{runs[-1].label} solved {solved} within {best.budget} turn{'s' if best.budget > 1 else ''}."


def agents_table(runs: Sequence[Found[AgentRun]]) -> Table | None:
    """Success rates, and why episodes ended unsolved: a row for each run, set and budget."""
    rows: list[tuple[Value, ...]] = []
    for found in runs:
        for one in found.value.record.rates:
            rate = Spread(value=one.rate, low=one.low, high=one.high) if one.num_tasks else None
            ends = [
                e.end
                for e in found.value.episodes
                if e.budget == one.budget and (not one.set or e.set == one.set) and not e.solved
            ]
            why = ", ".join(f"{ends.count(end)} {end}" for end in dict.fromkeys(ends)) or "none"
            rows.append((found.label, one.set or "all tasks", one.budget, rate, one.num_solved, one.num_tasks, why))
    columns = (
        Column(key="agent", title="Agent"),
        Column(key="tasks", title="Tasks"),
        Column(key="budget", title="Turns", kind="count", unit="at most"),
        Column(key="rate", title="Solved", kind="share", spread=True),
        Column(key="num_solved", title="Solved", kind="count", unit="tasks"),
        Column(key="num_tasks", title="Of", kind="count", unit="tasks"),
        Column(key="unsolved", title="Not solved, ended by"),
    )
    notes = ("Each budget of turns was tried from nothing. Intervals are Wilson\u2019s, 95 %, over the tasks.",)
    return Table(name="agents", title="Tasks solved", columns=columns, rows=tuple(rows), notes=notes) if rows else None


def agent_rates(runs: Sequence[Found[AgentRun]]) -> list[tuple[str, Spread]]:
    """A row for each run and budget of turns."""
    return [
        (
            f"{found.label}, {one.budget} turn{'s' * (one.budget > 1)}",
            Spread(value=one.rate, low=one.low, high=one.high),
        )
        for found in runs
        for one in found.value.record.rates
        if not one.set and one.num_tasks
    ]


def agent_transcripts(found: Found[AgentRun], number: int) -> Transcripts:
    """Every episode of one run."""
    run = found.value
    tasks = {(task.set, task.id): task for task in run.tasks}
    settings = run.record.settings
    where = f" at {settings.speaker.endpoint}" if settings.speaker.endpoint else ""
    advised = f", with {settings.manner.feedback} feedback by {settings.adviser.model}" if settings.adviser else ""
    mine = [one for one in run.episodes if one.budget == max(settings.budgets) and one.end != "error"]
    chosen = []
    for name in dict.fromkeys(one.set for one in mine):
        for solved in (True, False):
            chosen += [one for one in mine if one.set == name and one.solved is solved][:1]
    return Transcripts(
        label=found.label,
        file=f"transcripts-{number}.html",
        about=f"{settings.speaker.model}{where}{advised}; {len(run.episodes):,} episodes",
        all=tuple(_episode(tasks[one.set, one.id], one) for one in run.episodes),
        chosen=tuple(_episode(tasks[one.set, one.id], one) for one in chosen),
    )


def _episode(task: Task, episode: Episode) -> Transcript:
    parts = [Part(who="Task", text=task.prompt)]
    for number, turn in enumerate(episode.turns, 1):
        parts.append(Part(who=f"Turn {number}, the model", text=turn.output))
        parts.append(Part(who=_SHOWN[turn.action], text=turn.shown))
        parts += [Part(who="Feedback", text=turn.feedback)] if turn.feedback else []
    parts += [Part(who="Ended by", text=episode.error)] if episode.error else []
    return Transcript(
        heading=f"{task.set} {task.id}, {episode.budget} turn{'s' * (episode.budget > 1)} at most",
        outcome=_ENDS.get(episode.end, episode.end),
        tone="good" if episode.solved else "bad",
        parts=(*parts, Part(who="Right answer", text=task.reference)),
    )


# --- judged pairs ----------------------------------------------------------------------------------------

_SAYS = {"first": "the first", "second": "the second", "tie": "tie", "": "none"}
_TONES: dict[PairOutcome, str] = {"win": "good", "loss": "bad", "tie": "quiet", "error": "wary"}


def judged_sentence(runs: Sequence[Found[JudgeRun]]) -> str:
    """What the last comparison came to."""
    record = runs[-1].value.record
    whole: Tally = record.tallies[0]
    names = f"{record.settings.first.model} against {record.settings.second.model}"
    if whole.win_rate is None:
        return f"{names}: nothing could be judged; all {formats.count(whole.num_errors)} questions ended in errors."
    sides = (
        f"{names}: {whole.num_wins} won, {whole.num_losses} lost, {whole.num_ties} tied; a win rate of "
        f"{formats.share(whole.win_rate)}"
    )
    span = f"{formats.share(whole.low).removesuffix(' %')} to {formats.share(whole.high)}"
    if whole.low <= 0.5 <= whole.high:
        return f"{sides}, but its 95 % interval ({span}) includes one half: neither is called better."
    better = record.settings.first.model if whole.low > 0.5 else record.settings.second.model
    return f"{sides} (95 % interval {span}): the judge prefers {better}."


def judged_table(runs: Sequence[Found[JudgeRun]]) -> Table | None:
    """Wins, ties, losses and the win rate: over all questions, and by category."""
    rows: list[tuple[Value, ...]] = []
    for found in runs:
        for one in found.value.record.tallies:
            rate = None if one.win_rate is None else Spread(value=one.win_rate, low=one.low, high=one.high)
            counts = (one.num_wins, one.num_ties, one.num_losses, one.num_disagreements, one.num_errors)
            rows.append((found.label, one.category or "all questions", rate, *counts))
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
    notes = (
        "; ".join(f"{found.label}: {_about(found.value)}" for found in runs) + ". The judge saw every conversation "
        "twice, with the models in both orders; a win needs both looks, and where they differ it is a tie. A tie is "
        "half a win in the rate; intervals are Wilson\u2019s, 95 %, over the questions.",
    )
    title = "Who was preferred"
    return Table(name="judged", title=title, columns=columns, rows=tuple(rows), notes=notes) if rows else None


def judged_rates(runs: Sequence[Found[JudgeRun]]) -> list[tuple[str, Spread]]:
    """A row for each run and category that could be judged."""
    return [
        (f"{found.label}: {one.category or 'all'}", Spread(value=one.win_rate, low=one.low, high=one.high))
        for found in runs
        for one in found.value.record.tallies
        if one.win_rate is not None
    ]


def _about(run: JudgeRun) -> str:
    settings = run.record.settings
    return f"{settings.first.model} (the first) against {settings.second.model}, judged by {settings.judge.model}"


def judged_transcripts(found: Found[JudgeRun], number: int) -> Transcripts:
    """Both sides of every conversation of one comparison, and both looks of the judge."""
    run = found.value
    looks = {(one.question_id, one.swapped): one for one in run.judgements}
    shown = []
    for question, first, second in zip(run.questions, run.first, run.second, strict=True):
        pair = looks[question.question_id, False], looks[question.question_id, True]
        parts = []
        for turn, asked in enumerate(question.turns):
            parts.append(Part(who=f"Turn {turn + 1}, the user", text=asked))
            for side, reply in (("The first model", first), ("The second model", second)):
                said = reply.turns[turn] if turn < len(reply.turns) else f"(no answer: {reply.error})"
                parts.append(Part(who=side, text=said))
        parts += [Part(who=f"A right answer to turn {n}", text=right) for n, right in enumerate(question.reference, 1)]
        parts += [
            Part(who=f"The judge, the first model shown {order}: {_verdict(look)}", text=look.text)
            for order, look in zip(("first", "second"), pair, strict=True)
        ]
        outcome = outcome_of(*pair)
        heading = f"{question.category} {question.question_id}".strip()
        shown.append(Transcript(heading=heading, outcome=outcome, tone=_TONES[outcome], parts=tuple(parts)))
    chosen = [next((one for one in shown if one.outcome == outcome), None) for outcome in ("win", "loss", "tie")]
    return Transcripts(
        label=found.label,
        file=f"judged-{number}.html",
        about=f"{_about(run)}; {len(shown):,} questions",
        all=tuple(shown),
        chosen=tuple(one for one in chosen if one is not None),
    )


def _verdict(look: Judgement) -> str:
    return _SAYS[look.verdict] + (f" ({look.error})" if look.error else "")
