"""`run_agent`: all tasks, each budget from nothing, many episodes side by side.

In: a speaker, tasks, settings, the sandbox, perhaps an adviser. Out: a folder (see `records/agents.py`). All live
episodes of a turn go to the model in one call; their code runs side by side, each in a Python of its own. A run
that was stopped or killed goes on where it was: ended episodes are kept, those under way begin again, those that ended
in a server's error are tried again. Refused: a folder with another run in it, other settings or tasks when going on.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from blockexpand import __version__
from blockexpand.agents import prompts
from blockexpand.agents.episodes import act, after_turn, history_of, messages_of
from blockexpand.agents.speakers import Speaker
from blockexpand.agents.tools import SandboxTools, Shell
from blockexpand.digests import digest_json
from blockexpand.errors import AgentError, Interrupted
from blockexpand.evaluation.endpoint import Answer, Request
from blockexpand.progress import bar
from blockexpand.records import read_record, write_record
from blockexpand.records.agents import (
    EPISODES_NAME,
    SETTINGS_NAME,
    TASKS_NAME,
    AgentRecord,
    AgentSettings,
    Episode,
    Task,
    Turn,
    ends_of,
    rates_of,
    read_agent,
    tasks_digest,
)
from blockexpand.records.judge import JudgeSettings
from blockexpand.records.lines import Journal, read_lines, write_lines
from blockexpand.staging import RECORD_NAME, check_output

_AT_ONCE = 16
"""Episodes side by side: a Python process each, once they run code."""
_ADVICE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who takes part in a run."""

    speaker: Speaker
    tools: SandboxTools
    adviser: Speaker | None = None
    at_once: int = _AT_ONCE
    """Episodes side by side."""


@dataclass
class _Live:
    """An episode under way, and its Python."""

    task: Task
    episode: Episode
    shell: Shell
    stack: ExitStack


def run_agent(
    cast: Cast, tasks: Sequence[Task], settings: AgentSettings, out: str | Path, resume: bool = False
) -> AgentRecord:
    """Run every task within every budget, and write down every word.

    Args:
        cast: Who speaks, what runs the code, who advises.
        tasks: What is to be solved.
        settings: Budgets, manner, limits, and which model it is.
        out: The folder to write.
        resume: Go on with the run in `out`; begin it when there is none.

    Raises:
        AgentError: there is no task, or `out` holds another run.
        SandboxError: nothing here can isolate code.
        StagingError: `out` is taken.
        Interrupted: the run was stopped; what had ended is kept.
    """
    if not tasks:
        raise AgentError("there is no task; expected at least one; give --tasks, or --puzzles above 0")
    settings = dataclasses.replace(settings, tasks_digest=tasks_digest(tasks))
    sandbox = cast.tools.describe()
    folder, path = Path(out), Path(out) / EPISODES_NAME
    claim(folder, settings, TASKS_NAME, tasks, resume)
    done = read_lines(Episode, path, cut=True) if path.is_file() else []
    pairs = [(budget, task) for budget in settings.budgets for task in tasks]
    kept = {(e.budget, e.set, e.id): e for e in done if e.end != "error"}
    if len(kept) == len(pairs) and (folder / RECORD_NAME).is_file():
        return read_agent(folder).record
    left = deque((budget, task) for budget, task in pairs if (budget, task.set, task.id) not in kept)
    (folder / RECORD_NAME).unlink(missing_ok=True)  # of a run with errors, which are tried again: not whole until then
    journal = Journal(path)
    try:
        with bar("episodes", len(pairs), "episodes") as progress:
            progress.advance(len(kept))
            for episode in _played(cast, settings, left):
                journal.add(episode)
                kept[episode.budget, episode.set, episode.id] = episode
                progress.advance(1)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {len(kept)} of {len(pairs)} episodes; go on with --resume") from None
    finally:
        journal.close()
    episodes = [kept[budget, task.set, task.id] for budget, task in pairs]
    write_lines(path, episodes)
    record = AgentRecord(
        blockexpand_version=__version__,
        settings=settings,
        rates=rates_of(tasks, episodes, settings.budgets),
        ends=ends_of(episodes),
        sandbox=sandbox,
        versions={"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}},
    )
    write_record(folder / RECORD_NAME, record)
    return record


def claim(
    folder: Path, settings: AgentSettings | JudgeSettings, name: str, asked: Sequence[object], resume: bool
) -> None:
    """Make the folder this run's, what is asked in the file `name`; or see that it is.

    Raises:
        AgentError: it holds a run and `resume` is off, or one of other settings.
        StagingError: it is taken.
    """
    if not (folder / SETTINGS_NAME).is_file():
        check_output(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / name, asked)
        write_record(folder / SETTINGS_NAME, settings)
        return
    if not resume:
        raise AgentError(f"{folder} already holds a run; add --resume to go on with it, or choose another --out")
    begun = read_record(type(settings), folder / SETTINGS_NAME)
    if begun != settings:
        pairs = [(name, old, vars(settings)[name]) for name, old in vars(begun).items()]
        told = ", ".join(f"{name} {old!r}, now {new!r}" for name, old, new in pairs if old != new)
        raise AgentError(
            f"{folder} was begun with other settings: {told}; go on with the same, or choose another --out"
        )


def _played(cast: Cast, settings: AgentSettings, left: deque[tuple[int, Task]]) -> Iterator[Episode]:
    """Play episodes side by side, a turn of all of them at a time; each as it ends."""
    live: list[_Live] = []
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        try:
            while left or live:
                while left and len(live) < cast.at_once:
                    budget, task = left.popleft()
                    stack = ExitStack()
                    shell = stack.enter_context(cast.tools.shell())
                    episode = Episode(set=task.set, id=task.id, budget=budget)
                    live.append(_Live(task=task, episode=episode, shell=shell, stack=stack))
                _turn(cast, settings, live, pool)
                for one in [one for one in live if one.episode.end]:
                    yield one.episode
                    one.stack.close()
                    live.remove(one)
        finally:
            for one in live:
                one.stack.close()


def _turn(cast: Cast, settings: AgentSettings, live: Sequence[_Live], pool: ThreadPoolExecutor) -> None:
    """One more turn of every episode."""
    messages = [messages_of(one.task, one.episode, settings.manner) for one in live]
    most = settings.max_tokens
    answers = cast.speaker.ask([Request(messages=m, max_tokens=most, stop=prompts.STOPS) for m in messages])

    def answered(one: _Live, answer: Answer, digest: str) -> Episode:
        if answer.error is not None:  # a full context is the agent's, all else is the server's
            return dataclasses.replace(one.episode, end="context" if answer.too_long else "error", error=answer.error)
        start = time.monotonic()
        action, acted_on, ran, right = act(one.task, answer.text, one.shell, cast.tools)
        turn = Turn(
            prompt_digest=digest,
            output=answer.text,
            action=action,
            acted_on=acted_on,
            status=ran.status,
            shown=ran.text,
            right=right,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            seconds=round(answer.seconds, 4),
            tool_seconds=round(time.monotonic() - start, 4),
        )
        return after_turn(one.episode, turn)

    digests = [digest_json([dict(message) for message in said]) for said in messages]
    for one, episode in zip(live, pool.map(answered, live, answers, digests), strict=True):
        one.episode = episode
    going = [one for one in live if not one.episode.end]
    if cast.adviser is not None and going:
        _advise(cast.adviser, going, informed=settings.manner.feedback == "informed")


def _advise(adviser: Speaker, going: Sequence[_Live], *, informed: bool) -> None:
    """Let the second model speak on the last turns of the episodes that go on."""
    words = [prompts.advice_request(one.task, history_of(one.episode), informed) for one in going]
    requests = [Request(messages=[{"role": "user", "content": w}], max_tokens=_ADVICE_TOKENS) for w in words]
    for one, answer in zip(going, adviser.ask(requests), strict=True):
        if answer.error is not None:
            one.episode = dataclasses.replace(one.episode, end="error", error=f"feedback: {answer.error}")
            continue
        *before, last = one.episode.turns
        turns = (*before, dataclasses.replace(last, feedback=answer.text.strip()))
        one.episode = dataclasses.replace(one.episode, turns=turns)
