"""What a run of an agent leaves: its folder, written and read.

In: settings, tasks, episodes as they end. Out: a folder with `settings.json` (what the run was begun with),
`tasks.jsonl` (the tasks as they were put), `episodes.jsonl` (one line an episode, every word of it; appended as they
end, so that a killed run loses none) and, last, `blockexpand.json` (success rates with intervals). Refused: a folder
that is none of these, broken lines other than a last one that a kill cut short.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from blockexpand.agents.episodes import MOST_TURNS, Episode, Manner
from blockexpand.agents.tasks import Task, sets_of
from blockexpand.digests import digest_json
from blockexpand.errors import AgentError, RecordError
from blockexpand.records import WRITTEN_WHEN_SET, check, from_plain, parse_json, read_record, read_text, to_plain
from blockexpand.records.pack import Rule
from blockexpand.staging import RECORD_NAME, staged_file

T = TypeVar("T")

SETTINGS_NAME, TASKS_NAME, EPISODES_NAME = "settings.json", "tasks.jsonl", "episodes.jsonl"
DEFAULT_BUDGETS = (1, 2, 3, 4, 5)  # LLaMA Pro, Appendix E
_Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Opposite:
    """Which model speaks."""

    model: str
    """The folder of a checkpoint, or the name behind the address."""
    endpoint: str | None = None
    """The address, for a model behind one."""
    digest: str | None = None
    """Of a folder's weights."""
    packs: dict[str, str] = field(default_factory=dict)
    """Packs of new blocks that were put onto it, with the digests of their records."""


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """What a run is begun with; going on with it takes the same."""

    FORMAT: ClassVar[str] = "blockexpand.agent-settings"
    FORMAT_VERSION: ClassVar[int] = 1

    speaker: Opposite
    adviser: Opposite | None = None
    """The model that gives feedback."""
    budgets: tuple[int, ...] = DEFAULT_BUDGETS
    """Budgets of turns; for each, all tasks are tried from nothing."""
    manner: Manner = field(default_factory=Manner)
    max_tokens: int = 512
    """Of one turn (MINT's agents have 512)."""
    tasks_digest: str = ""
    rule: Rule | None = field(default=None, metadata=WRITTEN_WHEN_SET)
    """How packs are chosen for each task; none = those that are on stay on."""

    def __post_init__(self) -> None:
        fit = len(set(self.budgets)) == len(self.budgets) > 0 and all(0 < k <= MOST_TURNS for k in self.budgets)
        check(fit, "budgets", list(self.budgets), f"different numbers of turns from 1 to {MOST_TURNS}")
        check(0 < self.max_tokens <= 100_000, "max_tokens", self.max_tokens, "1 to 100,000")
        advised = self.manner.feedback != "none"
        check(advised == (self.adviser is not None), "feedback", self.manner.feedback, "a second model, and only then")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How many tasks were solved within one budget."""

    budget: int
    set: str
    """Of one set; empty for all together."""
    num_solved: int
    num_tasks: int
    """Without those that ended in an error."""
    num_errors: int
    rate: float
    low: float
    """Of the 95 % interval (Wilson's score interval), as is `high`."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Routes:
    """Which packs answered."""

    candidates: tuple[str, ...]
    passes: float
    """What scoring a token of a task costs, in passes of the base's blocks."""
    chosen: dict[str, dict[str, int]]
    """Episodes of each set by the packs they were given; `base` is none."""


@dataclass(frozen=True, kw_only=True)
class AgentRecord:
    """What came of a run; saved as the folder's `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.agent"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    settings: AgentSettings
    rates: tuple[Rate, ...]
    """For each budget: all together, then each set."""
    ends: dict[str, dict[str, int]]
    """How many episodes ended how, by budget."""
    sandbox: str
    """What isolated the model's code."""
    versions: dict[str, str]
    routes: Routes | None = field(default=None, metadata=WRITTEN_WHEN_SET)
    """Where packs were chosen by the task."""


@dataclass(frozen=True, kw_only=True)
class AgentRun:
    """A folder read back."""

    record: AgentRecord
    tasks: tuple[Task, ...]
    episodes: tuple[Episode, ...]


def rates_of(tasks: Sequence[Task], episodes: Sequence[Episode], budgets: Sequence[int]) -> tuple[Rate, ...]:
    """The success rates, over all tasks and for each set."""
    names = sets_of(tasks)
    found = []
    for budget in budgets:
        mine = [one for one in episodes if one.budget == budget]
        shown = ("", *(names if len(names) > 1 else ()))
        found += [_rate(budget, name, [one for one in mine if not name or one.set == name]) for name in shown]
    return tuple(found)


def _rate(budget: int, name: str, episodes: Sequence[Episode]) -> Rate:
    errors = sum(one.end == "error" for one in episodes)
    solved, num = sum(one.solved for one in episodes), len(episodes) - errors
    low, high = wilson(solved, num)
    return Rate(
        budget=budget,
        set=name,
        num_solved=solved,
        num_tasks=num,
        num_errors=errors,
        rate=solved / num if num else 0.0,
        low=low,
        high=high,
    )


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927); all of [0, 1] where nothing was tried.

    Half successes (ties) may be counted: they vary less than whole ones, so the interval is then wider than it need be.
    """
    if not trials:
        return 0.0, 1.0
    share, spread = successes / trials, _Z * _Z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    # At 0 and at 1 the ends are exact; rounding would leave 1e-17.
    return 0.0 if successes == 0 else middle - half, 1.0 if successes == trials else middle + half


def ends_of(episodes: Sequence[Episode]) -> dict[str, dict[str, int]]:
    """How many episodes ended how, by budget."""
    counts: dict[str, dict[str, int]] = {}
    for one in sorted(episodes, key=lambda e: (e.budget, e.end)):
        mine = counts.setdefault(str(one.budget), {})
        mine[one.end] = mine.get(one.end, 0) + 1
    return counts


def routes_of(episodes: Sequence[Episode]) -> dict[str, dict[str, int]]:
    """How many episodes of each set were given which packs; those that were given none by choice are left out."""
    counts: dict[str, dict[str, int]] = {}
    for one in sorted((e for e in episodes if e.route is not None), key=lambda e: str(e.route)):
        mine = counts.setdefault(one.set, {})
        mine[str(one.route)] = mine.get(str(one.route), 0) + 1
    return dict(sorted(counts.items()))


def tasks_digest(tasks: Sequence[Task]) -> str:
    """The digest of the tasks as they are put."""
    return digest_json([to_plain(task) for task in tasks])


def read_agent(folder: str | Path) -> AgentRun:
    """A folder that a finished run left.

    Raises:
        AgentError: it is not one, or lines of it are broken or missing.
    """
    path = Path(folder)
    if not (path / RECORD_NAME).is_file():
        unfinished = (path / SETTINGS_NAME).is_file()
        do = "go on with it with --resume" if unfinished else "make one with agent"
        raise AgentError(f"{folder} holds no finished run of an agent: it has no {RECORD_NAME}; {do}")
    record = read_record(AgentRecord, path / RECORD_NAME)
    tasks, episodes = read_lines(Task, path / TASKS_NAME), read_lines(Episode, path / EPISODES_NAME)
    if tasks_digest(tasks) != record.settings.tasks_digest:
        raise AgentError(f"{path / TASKS_NAME} holds other tasks than the run had; expected the file as agent left it")
    missing = len(tasks) * len(record.settings.budgets) - len(episodes)
    if missing:
        raise AgentError(
            f"{path / EPISODES_NAME} has {len(episodes)} episodes; expected {len(episodes) + missing}; run agent again"
        )
    return AgentRun(record=record, tasks=tuple(tasks), episodes=tuple(episodes))


def read_lines(cls: type[T], path: Path, cut: bool = False) -> list[T]:
    """The values of a JSON lines file; with `cut`, a last line that was not written whole is passed over.

    Raises:
        AgentError: a line is broken.
    """
    try:
        text = read_text(path)
    except RecordError as error:
        raise AgentError(f"{error}; expected the lines that agent or judge wrote") from None
    # Not splitlines(): what models write holds separators that JSON leaves as they are.
    whole, _, rest = text.rpartition("\n")
    if rest and not cut:
        raise AgentError(f"{path} ends within a line; expected it whole; go on with the run with --resume")
    values = []
    for number, line in enumerate(whole.split("\n") if whole else (), 1):
        where = f"{path}, line {number}"
        try:
            values.append(from_plain(cls, parse_json(line, where), where))
        except RecordError as error:
            raise AgentError(f"{error}; expected a line as it was written; the folder is damaged") from None
    return values


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values as JSON lines, whole or not at all."""
    with staged_file(path) as stream:
        for value in values:
            stream.write(line_of(value))


def line_of(value: Any) -> bytes:
    """One value as a line; half characters, which models and programs can produce, become question marks."""
    return (json.dumps(to_plain(value), ensure_ascii=False) + "\n").encode("utf-8", "replace")


class Journal:
    """A file of lines that each survive a kill once they are written."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending, without the part of a line that a kill may have left at its end."""
        self._path = path
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                os.truncate(path, whole)
        self._stream = path.open("ab")

    def add(self, value: Any) -> None:
        """Append one line and make it durable."""
        self._stream.write(line_of(value))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
