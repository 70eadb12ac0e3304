"""`run_agent`: all tasks, each budget from nothing, many episodes side by side.

In: a speaker, tasks, settings, the sandbox, perhaps an adviser. Out: a folder (see `records/agents.py`). All live
episodes of a turn go to the model in one call; their code runs side by side, each in a Python of its own. A run
that was stopped or killed goes on where it was: ended episodes are kept, those under way begin again, those that ended
in a server's error are tried again. Refused: a folder with another run in it, other settings or tasks when going on.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blockexpand import __version__
from blockexpand.agents import prompts
from blockexpand.agents.episodes import (
    act,
    after_failure,
    after_turn,
    digest_of,
    history_of,
    messages_of,
    with_feedback,
)
from blockexpand.agents.speakers import Speaker
from blockexpand.agents.tools import Shell, Tools
from blockexpand.errors import AgentError, Interrupted
from blockexpand.evaluation.endpoint import Answer, Request
from blockexpand.progress import Bar, bar
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
from blockexpand.records.lines import Journal, read_lines, write_lines
from blockexpand.staging import RECORD_NAME, check_output

_AT_ONCE = 16
"""Episodes side by side: a Python process each, once they run code."""
_ADVICE_TOKENS = 256


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who takes part in a run."""

    speaker: Speaker
    tools: Tools
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
    folder = Path(out)
    done = _claim(folder, settings, tasks, resume)
    pairs = [(budget, task) for budget in settings.budgets for task in tasks]
    kept = {(e.budget, e.set, e.id): e for e in done if e.end != "error"}
    if len(kept) == len(pairs) and (folder / RECORD_NAME).is_file():
        return read_agent(folder).record
    left = deque((budget, task) for budget, task in pairs if (budget, task.set, task.id) not in kept)
    (folder / RECORD_NAME).unlink(missing_ok=True)  # of a run with errors, which are tried again: not whole until then
    journal = Journal(folder / EPISODES_NAME)
    try:
        with bar("episodes", len(pairs), "episodes") as progress:
            progress.advance(len(kept))
            for episode in _Stage(cast, settings, progress).play(left, journal):
                kept[episode.budget, episode.set, episode.id] = episode
    except KeyboardInterrupt:
        raise Interrupted(f"stopped after {len(kept)} of {len(pairs)} episodes; go on with --resume") from None
    finally:
        journal.close()
    episodes = [kept[budget, task.set, task.id] for budget, task in pairs]
    return _finish(folder, settings, tasks, episodes, sandbox)


def _finish(
    folder: Path,
    settings: AgentSettings,
    tasks: Sequence[Task],
    episodes: Sequence[Episode],
    sandbox: str,
) -> AgentRecord:
    write_lines(folder / EPISODES_NAME, episodes)
    record = AgentRecord(
        blockexpand_version=__version__,
        settings=settings,
        rates=rates_of(tasks, episodes, settings.budgets),
        ends=ends_of(episodes),
        sandbox=sandbox,
        versions=_versions(),
    )
    write_record(folder / RECORD_NAME, record)
    return record


def _claim(folder: Path, settings: AgentSettings, tasks: Sequence[Task], resume: bool) -> list[Episode]:
    """Make the folder this run's; the episodes that had ended, when it goes on."""
    if (folder / SETTINGS_NAME).is_file():
        if not resume:
            raise AgentError(f"{folder} already holds a run; add --resume to go on with it, or choose another --out")
        begun = read_record(AgentSettings, folder / SETTINGS_NAME)
        if begun != settings:
            raise AgentError(
                f"{folder} was begun with other settings: {_difference(begun, settings)}; go on with the same, or "
                "choose another --out"
            )
        path = folder / EPISODES_NAME
        return read_lines(Episode, path, cut=True) if path.is_file() else []
    check_output(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / TASKS_NAME, tasks)
    write_record(folder / SETTINGS_NAME, settings)
    return []


def _difference(begun: AgentSettings, now: AgentSettings) -> str:
    pairs = [(name, old, vars(now)[name]) for name, old in vars(begun).items() if old != vars(now)[name]]
    return ", ".join(f"{name} {old!r}, now {new!r}" for name, old, new in pairs)


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    return {"python": platform.python_version(), "torch": version("torch"), "transformers": version("transformers")}


class _Stage:
    """Plays episodes side by side, a turn of all of them at a time."""

    def __init__(self, cast: Cast, settings: AgentSettings, progress: Bar) -> None:
        self._cast, self._settings, self._progress = cast, settings, progress
        self._live: list[_Live] = []

    def play(self, left: deque[tuple[int, Task]], journal: Journal) -> list[Episode]:
        """Play all that is left; each episode is in the journal once it has ended."""
        ended: list[Episode] = []
        with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
            try:
                while left or self._live:
                    while left and len(self._live) < self._cast.at_once:
                        self._begin(*left.popleft())
                    self._turn(pool)
                    for one in [one for one in self._live if one.episode.end]:
                        journal.add(one.episode)
                        ended.append(one.episode)
                        one.stack.close()
                        self._live.remove(one)
                        self._progress.advance(1)
            finally:
                for one in self._live:
                    one.stack.close()
        return ended

    def _begin(self, budget: int, task: Task) -> None:
        stack = ExitStack()
        shell = stack.enter_context(self._cast.tools.shell())
        episode = Episode(set=task.set, id=task.id, budget=budget)
        self._live.append(_Live(task=task, episode=episode, shell=shell, stack=stack))

    def _turn(self, pool: ThreadPoolExecutor) -> None:
        manner = self._settings.manner
        messages = [messages_of(one.task, one.episode, manner) for one in self._live]
        most = self._settings.max_tokens
        requests = [Request(messages=said, max_tokens=most, stop=prompts.STOPS) for said in messages]
        answers = self._cast.speaker.ask(requests)
        digests = [digest_of(said) for said in messages]
        grown = pool.map(lambda x: self._answered(*x), zip(self._live, answers, digests, strict=True))
        for one, episode in zip(list(self._live), grown, strict=True):
            one.episode = episode
        self._advise()

    def _answered(self, one: _Live, answer: Answer, digest: str) -> Episode:
        if answer.error is not None:
            return after_failure(one.episode, answer)
        start = time.monotonic()
        action, acted_on, ran, right = act(one.task, answer.text, one.shell, self._cast.tools)
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

    def _advise(self) -> None:
        """Let the second model speak on the turns of the episodes that go on."""
        adviser, feedback = self._cast.adviser, self._settings.manner.feedback
        going = [one for one in self._live if not one.episode.end]
        if adviser is None or feedback == "none" or not going:
            return
        words = [prompts.advice_request(one.task, history_of(one.episode), feedback == "informed") for one in going]
        requests = [Request(messages=[{"role": "user", "content": w}], max_tokens=_ADVICE_TOKENS) for w in words]
        for one, answer in zip(going, adviser.ask(requests), strict=True):
            if answer.error is None:
                one.episode = with_feedback(one.episode, answer.text.strip())
            else:
                error = dataclasses.replace(answer, error=f"feedback: {answer.error}")
                one.episode = after_failure(one.episode, error)
