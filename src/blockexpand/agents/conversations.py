"""Questions of several turns, and what a model answers to them.

In: questions in MT-Bench's format (JSON lines of `question_id`, `category`, `turns`, perhaps `reference`), those of
this room by default; a speaker. Out: one conversation a
question. All questions of a turn go to the model in one call; an error ends its conversation and stands in it. Refused:
wrong columns, no question, one id twice.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockexpand.agents.speakers import Speaker
from blockexpand.errors import AgentError, RecordError
from blockexpand.evaluation.endpoint import Message, Request
from blockexpand.progress import bar
from blockexpand.records import check, from_plain, parse_json, read_text
from blockexpand.records.judge import Question, Reply

_OURS = "questions.jsonl"


def load_questions(path: str | Path | None = None) -> list[Question]:
    """The questions of a file, or our own.

    Raises:
        AgentError: the file is missing or empty, or a line is no question.
    """
    if path is None:
        text = importlib.resources.files("blockexpand.agents").joinpath(_OURS).read_text(encoding="utf-8")
        return _questions(text, _OURS)
    try:
        return _questions(read_text(path), str(path))
    except RecordError as error:
        raise AgentError(f"no questions: {error}; expected JSON lines of question_id, category and turns") from None


def _questions(text: str, where: str) -> list[Question]:
    questions = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{where}, line {number}"
            questions.append(from_plain(Question, _listed(parse_json(line, place)), place))
    ids = [question.question_id for question in questions]
    check(bool(questions), where, "no line", "at least one question")
    for one in ids:
        check(ids.count(one) == 1, f"{where}: question_id", one, "an id that no other question has")
    return questions


def _listed(row: Any) -> Any:
    """MT-Bench's files have a reference that is a list, or none."""
    if isinstance(row, dict) and isinstance(row.get("reference"), str):
        return {**row, "reference": [row["reference"]]}
    return row


def converse(speaker: Speaker, questions: Sequence[Question], max_tokens: int, title: str) -> list[Reply]:
    """Let a model answer every turn of every question."""
    said: dict[int | str, list[str]] = {question.question_id: [] for question in questions}
    errors: dict[int | str, str] = {}
    with bar(title, sum(len(question.turns) for question in questions), "answers") as progress:
        for turn in range(max(len(question.turns) for question in questions)):
            going = [q for q in questions if len(q.turns) > turn and q.question_id not in errors]
            requests = [Request(messages=_messages(q, said[q.question_id]), max_tokens=max_tokens) for q in going]
            for question, answer in zip(going, speaker.ask(requests) if requests else [], strict=True):
                if answer.error is None:
                    said[question.question_id].append(answer.text)
                else:
                    errors[question.question_id] = f"turn {turn + 1}: {answer.error}"
            progress.advance(len(going))
    return [Reply(question_id=key, turns=tuple(turns), error=errors.get(key, "")) for key, turns in said.items()]


def _messages(question: Question, said: Sequence[str]) -> list[Message]:
    messages: list[Message] = []
    for number, asked in enumerate(question.turns[: len(said) + 1]):
        messages.append({"role": "user", "content": asked})
        if number < len(said):
            messages.append({"role": "assistant", "content": said[number]})
    return messages
