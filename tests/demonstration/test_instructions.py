"""The project's own instructions: answers that are right, and a held-out part that nobody trained on."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

from blockexpand.demonstration.instructions import instructions, is_test, write_instructions
from blockexpand.evaluation.answers import load_tasks

MANY = list(itertools.islice(instructions(0), 2000))


def solve(prompt: str) -> str:
    """The answer, worked out in another way than the maker's."""
    head, _, words = prompt.partition(": ")
    numbers = [int(x) for x in re.findall(r"\d+", prompt)]
    if " + " in prompt:
        return str(sum(numbers))
    if " - " in prompt:
        return str(numbers[0] - numbers[1])
    if head.startswith("Which number"):
        return str(sorted(numbers)[-1])
    if head.startswith("Is "):
        return "yes" if prompt.split()[1] in words.rstrip("?").split() else "no"
    listed = words.split()
    return {"W": listed[0] if "first" in head else listed[-1], "H": str(len(listed)), "R": words}[head[0]]


def test_every_answer_is_right() -> None:
    assert [task.answer for task in MANY] == [solve(task.prompt) for task in MANY]


def test_all_eight_kinds_come_in_turn() -> None:
    assert len({task.task for task in MANY[:8]}) == 8


def test_no_question_comes_twice_and_a_seed_gives_the_same_ones() -> None:
    assert len({task.prompt for task in MANY}) == len(MANY)
    assert list(itertools.islice(instructions(0), 50)) == MANY[:50]
    assert list(itertools.islice(instructions(1), 50)) != MANY[:50]


def test_held_out_questions_are_not_among_the_conversations(tmp_path: Path) -> None:
    write_instructions(tmp_path, 300, 60)
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    asked = {row["messages"][0]["content"] for row in rows}
    tasks = load_tasks(tmp_path / "tasks.jsonl")
    assert len(rows) == len(asked) == 300
    assert len(tasks) == 60
    assert asked.isdisjoint(task.prompt for task in tasks)
    assert all(is_test(task) for task in tasks)
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}
    assert all(solve(prompt) == answer for prompt, answer in answers.items())
