"""`replay`: a run once more from its records, without the model: does it come to the same?

In: a folder that `run_agent` left. Out: a `Replay`: every episode played again by the rules, with the recorded words
of the model and of its programs; what the model was sent, what its words were taken for, which solutions are right
(checked anew, code in the sandbox), how each episode ended, and the success rates; a line for each thing that differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from blockexpand.agents.episodes import act, after_turn, digest_of, messages_of
from blockexpand.agents.tools import Ran, Tools
from blockexpand.errors import AgentError
from blockexpand.progress import bar
from blockexpand.records.agents import Episode, Manner, Task, Turn, ends_of, rates_of, read_agent, routes_of


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of a replay."""

    num_episodes: int
    num_turns: int
    differences: tuple[str, ...]
    """Empty when all is the same."""


def replay(folder: str | Path, tools: Tools) -> Replay:
    """Play a run again from its records.

    Raises:
        AgentError: the folder holds no finished run.
        SandboxError: code has to be checked, and nothing here can isolate it.
    """
    run = read_agent(folder)
    tasks = {(task.set, task.id): task for task in run.tasks}
    manner = run.record.settings.manner
    differences: list[str] = []
    again: list[Episode] = []
    with bar("replay", len(run.episodes), "episodes") as progress:
        for episode in run.episodes:
            task = tasks.get((episode.set, episode.id))
            if task is None:
                raise AgentError(f"{folder}: the episode {episode.id!r} of {episode.set} has no task in tasks.jsonl")
            played = _play(task, episode, manner, tools)
            differences += _compare(episode, played)
            again.append(played)
            progress.advance(1)
    if rates_of(run.tasks, again, run.record.settings.budgets) != run.record.rates:
        differences.append("the success rates differ from those in the record")
    if ends_of(again) != run.record.ends:
        differences.append("the episodes' ends differ from those in the record")
    if routes_of(run.episodes) != (run.record.routes.chosen if run.record.routes else {}):
        differences.append("the packs that episodes were given differ from those counted in the record")
    return Replay(
        num_episodes=len(again),
        num_turns=sum(len(episode.turns) for episode in run.episodes),
        differences=tuple(differences),
    )


class _Recorded:
    """A Python that says what it said before."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def run(self, code: str) -> Ran:
        """The recorded output; the code is compared elsewhere."""
        del code
        return Ran(status=self._turn.status, text=self._turn.shown)


def _play(task: Task, recorded: Episode, manner: Manner, tools: Tools) -> Episode:
    """The episode that the rules make of the recorded words."""
    episode = Episode(set=task.set, id=task.id, budget=recorded.budget)
    for turn in recorded.turns:
        if episode.end:
            break
        action, acted_on, ran, right = act(task, turn.output, _Recorded(turn), tools)
        played = Turn(
            prompt_digest=digest_of(messages_of(task, episode, manner)),
            output=turn.output,
            action=action,
            acted_on=acted_on,
            status=ran.status,
            shown=turn.shown if action == "execute" else ran.text,
            right=right,
            feedback=turn.feedback,
        )
        episode = after_turn(episode, played)
    if not episode.end and recorded.end in ("context", "error"):
        # Words that never came cannot be played again.
        return dataclasses.replace(episode, end=recorded.end, error=recorded.error)
    return episode


_COMPARED = ("prompt_digest", "action", "acted_on", "status", "shown", "right")


def _compare(recorded: Episode, played: Episode) -> Iterator[str]:
    where = f"{recorded.set} {recorded.id} in {recorded.budget} turns"
    if recorded.end != played.end or len(recorded.turns) != len(played.turns):
        yield (
            f"{where}: it ended {recorded.end!r} after {len(recorded.turns)} turns, replayed {played.end!r} after "
            f"{len(played.turns)}"
        )
    for number, (old, new) in enumerate(zip(recorded.turns, played.turns, strict=False), 1):
        for name in _COMPARED:
            if vars(old)[name] != vars(new)[name]:
                yield f"{where}, turn {number}: {name} was {vars(old)[name]!r}, replayed {vars(new)[name]!r}"
