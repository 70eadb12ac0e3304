"""What `judge` leaves: every answer and every judgement to the letter, and the first side's win rate.

In: a folder that `judge_pair` wrote. Out: the same as values. Refused: files that do not belong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from blockexpand.errors import AgentError
from blockexpand.records.agents import Opposite
from blockexpand.records.codec import check, read_record
from blockexpand.records.intervals import wilson
from blockexpand.records.lines import digest_lines, read_lines
from blockexpand.staging import RECORD_NAME

QUESTIONS_NAME, JUDGEMENTS_NAME = "questions.jsonl", "judgements.jsonl"

Preference = Literal["first", "second", "tie", ""]

PairOutcome = Literal["win", "loss", "tie", "error"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question of several turns."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]
    """What the user says, turn by turn."""
    reference: tuple[str, ...] = ()
    """Right answers to the turns, where there are any."""

    def __post_init__(self) -> None:
        check(bool(self.turns) and all(map(str.strip, self.turns)), "turns", list(self.turns), "one or more questions")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One model's side of a conversation."""

    question_id: int | str
    turns: tuple[str, ...]
    """What it answered, turn by turn; fewer than were asked where an error ended it."""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One look of the judge at one question."""

    question_id: int | str
    swapped: bool
    """Whether the second side was shown first."""
    text: str
    """What the judge wrote."""
    verdict: Preference
    """Which side it prefers, whatever the order they were shown in; empty where it cannot be read."""
    error: str = ""
    """Why there is no verdict."""


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What a run is begun with."""

    FORMAT: ClassVar[str] = "blockexpand.judge-settings"
    FORMAT_VERSION: ClassVar[int] = 1

    first: Opposite
    second: Opposite
    judge: Opposite
    max_tokens: int = 1_024
    """Of one answer."""
    questions_digest: str = ""

    def __post_init__(self) -> None:
        check(0 < self.max_tokens <= 100_000, "max_tokens", self.max_tokens, "1 to 100,000")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How the first side fared against the second."""

    category: str
    """Of one category; empty for all questions."""
    num_wins: int
    num_losses: int
    num_ties: int
    num_errors: int
    """Questions without two readable verdicts, or without two answers; not counted in the rate."""
    num_disagreements: int
    """Ties where the judge preferred another side once the order was changed."""
    win_rate: float | None
    """Wins and half of the ties, over all that are not errors; None where all are."""
    low: float
    """Of the 95 % interval (Wilson's, a tie being half a win), as is `high`."""
    high: float


@dataclass(frozen=True, kw_only=True)
class JudgeRecord:
    """What came of it; saved as the folder's `blockexpand.json`."""

    FORMAT: ClassVar[str] = "blockexpand.judge"
    FORMAT_VERSION: ClassVar[int] = 1

    blockexpand_version: str
    settings: JudgeSettings
    tallies: tuple[Tally, ...]
    """Of all questions, then of each category."""


@dataclass(frozen=True, kw_only=True)
class JudgeRun:
    """Everything a finished run left; answers in the order of the questions, two judgements a question."""

    record: JudgeRecord
    questions: tuple[Question, ...]
    first: tuple[Reply, ...]
    second: tuple[Reply, ...]
    judgements: tuple[Judgement, ...]
    """Of each question, the one with the first side shown first, then the other."""


def read_judge(folder: str | Path) -> JudgeRun:
    """Read a finished run.

    Raises:
        AgentError: there is none in `folder`, or its files do not belong together.
    """
    path = Path(folder)
    if not (path / RECORD_NAME).is_file():
        raise AgentError(f"{folder} holds no finished judgement: it has no {RECORD_NAME}; make one with judge")
    record = read_record(JudgeRecord, path / RECORD_NAME)
    questions = read_lines(Question, path / QUESTIONS_NAME)
    if digest_lines(questions) != record.settings.questions_digest:
        raise AgentError(
            f"{path / QUESTIONS_NAME} holds other questions than the run had; expected the file as judge left it"
        )
    first, second = (read_lines(Reply, path / f"answers-{name}.jsonl") for name in ("first", "second"))
    judgements = read_lines(Judgement, path / JUDGEMENTS_NAME)
    ids = [question.question_id for question in questions]
    for name, found, expected in (
        ("answers-first.jsonl", [one.question_id for one in first], ids),
        ("answers-second.jsonl", [one.question_id for one in second], ids),
        (
            JUDGEMENTS_NAME,
            [(j.question_id, j.swapped) for j in judgements],
            [(i, s) for i in ids for s in (False, True)],
        ),
    ):
        if found != expected:
            raise AgentError(
                f"{path / name} has {len(found)} lines that are not those of the {len(ids)} questions; expected the "
                "file as judge left it; judge again"
            )
    if tally(questions, judgements) != record.tallies:
        raise AgentError(
            f"{path / JUDGEMENTS_NAME} comes to other counts than {path / RECORD_NAME} has; expected the files as "
            "judge left them; judge again"
        )
    return JudgeRun(
        record=record,
        questions=tuple(questions),
        first=tuple(first),
        second=tuple(second),
        judgements=tuple(judgements),
    )


def outcome_of(straight: Judgement, swapped: Judgement) -> PairOutcome:
    """What two looks at one question come to, for the first side."""
    verdicts = {straight.verdict, swapped.verdict}
    if "" in verdicts:
        return "error"
    if verdicts == {"first"}:
        return "win"
    return "loss" if verdicts == {"second"} else "tie"


def tally(questions: Sequence[Question], judgements: Sequence[Judgement]) -> tuple[Tally, ...]:
    """Wins, losses and ties of the first side, over all questions and by category."""
    looks = {(one.question_id, one.swapped): one for one in judgements}
    pairs = [(q, looks[q.question_id, False], looks[q.question_id, True]) for q in questions]
    categories = list(dict.fromkeys(question.category for question in questions))
    return tuple(
        _tally(name, [(one, two) for question, one, two in pairs if not name or question.category == name])
        for name in ("", *(categories if len(categories) > 1 else ()))
    )


def _tally(category: str, pairs: Sequence[tuple[Judgement, Judgement]]) -> Tally:
    outcomes = [outcome_of(*pair) for pair in pairs]
    wins, losses, ties = (outcomes.count(one) for one in ("win", "loss", "tie"))
    counted = wins + losses + ties
    low, high = wilson(wins + ties / 2, counted)
    return Tally(
        category=category,
        num_wins=wins,
        num_losses=losses,
        num_ties=ties,
        num_errors=outcomes.count("error"),
        num_disagreements=sum({one.verdict, two.verdict} == {"first", "second"} for one, two in pairs),
        win_rate=(wins + ties / 2) / counted if counted else None,
        low=low,
        high=high,
    )
