"""What a run of an agent leaves: its folder, written and read.

In: settings, tasks, episodes as they end. Out: a folder with `settings.json` (what the run was begun with),
`tasks.jsonl` (the tasks as they were put), `episodes.jsonl` (one line an episode, every word of it; appended as they
end, so that a killed run loses none) and, last, `blockexpand.json` (success rates with intervals). Refused: a folder
that is none of these, broken lines other than a last one that a kill cut short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from blockexpand.errors import AgentError
from blockexpand.records.codec import check, read_record
from blockexpand.records.intervals import wilson
from blockexpand.records.lines import digest_lines, read_lines
from blockexpand.staging import RECORD_NAME

SETTINGS_NAME, TASKS_NAME, EPISODES_NAME = "settings.json", "tasks.jsonl", "episodes.jsonl"
DEFAULT_BUDGETS = (1, 2, 3, 4, 5)  # LLaMA Pro, Appendix E

Scoring = Literal["text", "choice", "theorem", "code", "exact"]

ANSWER_TYPES = ("bool", "float", "integer", "list of float", "list of integer", "option")

MOST_TURNS = 50

Action = Literal["solution", "execute", "nothing"]

End = Literal["solved", "proposals", "turns", "context", "error", ""]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task."""

    set: str
    """The set it is of, under which its success is counted."""
    id: str
    prompt: str
    """The question, as the agent reads it."""
    scoring: Scoring
    """text: within 5 % or contained; choice: an option's letter or text; theorem: TheoremQA's rules; code: unit tests;
    exact: the same number or the same words."""
    reference: str
    """The right answer; for code the tests, for TheoremQA JSON."""
    answer_type: str = ""
    """Of TheoremQA: what kind of value the answer is."""
    options: dict[str, str] = field(default_factory=dict)
    """Of a choice: the options' texts by their letters in lower case."""
    program: str = ""
    """Of a task that we made: Python that prints the right answer. Never shown to an agent."""

    def __post_init__(self) -> None:
        check(bool(self.set), "set", self.set, "a name")
        check(bool(self.id), "id", self.id, "text that no other task of the set has")
        check(bool(self.prompt.strip()), "prompt", self.prompt, "a question")
        if self.scoring == "choice":
            expected = f"one of {', '.join(sorted(self.options)) or 'two or more options (none was found)'}"
            check(len(self.options) > 1 and self.reference in self.options, "reference", self.reference, expected)
        if self.scoring == "theorem":
            known = ", ".join(ANSWER_TYPES)
            check(self.answer_type in ANSWER_TYPES, "answer_type", self.answer_type, f"one of {known}")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What happened in one turn."""

    prompt_digest: str
    """Of all messages that the model was sent."""
    output: str
    """What it wrote, to the letter."""
    action: Action
    acted_on: str
    """The code or the solution that was in it."""
    status: str
    """Of code, as the sandbox has it; empty where none ran."""
    shown: str
    """What the agent is told came of it."""
    right: bool | None
    """Of a proposal, whether it is right."""
    feedback: str = ""
    """Of a second model."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """The model's wall time; in a batch, the batch's."""
    tool_seconds: float = 0.0
    """Wall time of the code or of the check."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One try at one task."""

    set: str
    id: str
    budget: int
    """The turns it may take."""
    turns: tuple[Turn, ...] = ()
    end: End = ""
    """Why it ended: solved; all proposals or all turns used up; the conversation no longer fitted the model's context;
    an error of the server's, which says nothing about the model. Empty while it goes on."""
    error: str = ""

    def __post_init__(self) -> None:
        check(0 < self.budget <= MOST_TURNS, "budget", self.budget, f"1 to {MOST_TURNS}")
        check(len(self.turns) <= self.budget, "turns", len(self.turns), f"at most {self.budget}")

    @property
    def solved(self) -> bool:
        """Whether the task was solved."""
        return self.end == "solved"

    @property
    def num_proposals(self) -> int:
        """Solutions that were proposed."""
        return sum(turn.action == "solution" for turn in self.turns)


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How an agent is spoken to."""

    example: bool = True
    """Whether the first message shows a short example."""
    feedback: Literal["none", "blind", "informed"] = "none"
    """Advice by a second model: none, without the right answer, or knowing it."""


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


def ends_of(episodes: Sequence[Episode]) -> dict[str, dict[str, int]]:
    """How many episodes ended how, by budget."""
    counts: dict[str, dict[str, int]] = {}
    for one in sorted(episodes, key=lambda e: (e.budget, e.end)):
        mine = counts.setdefault(str(one.budget), {})
        mine[one.end] = mine.get(one.end, 0) + 1
    return counts


def tasks_digest(tasks: Sequence[Task]) -> str:
    """The digest of the tasks as they are put."""
    return digest_lines(tasks)


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


def sets_of(tasks: Iterable[Task]) -> list[str]:
    """The names of the sets, in the order of their first tasks."""
    return list(dict.fromkeys(task.set for task in tasks))
