"""Instructions the project makes itself: exact arithmetic and small text tasks with checkable answers.

Each question has one right answer, computed here. Train and test never share a question: a question
belongs to one of them by a hash of its words.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from blockexpand.digests import fraction_of
from blockexpand.evaluation.answers import AnswerTask
from blockexpand.records import to_plain

_TEST_SHARE = 0.2
_WORDS = tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split())

_Maker = Callable[[random.Random], tuple[str, str]]


def _add(r: random.Random) -> tuple[str, str]:
    a, b = r.randrange(20), r.randrange(20)
    return f"What is {a} + {b}?", str(a + b)


def _subtract(r: random.Random) -> tuple[str, str]:
    a, b = sorted((r.randrange(20), r.randrange(20)), reverse=True)
    return f"What is {a} - {b}?", str(a - b)


def _larger(r: random.Random) -> tuple[str, str]:
    a, b = r.sample(range(100), 2)
    return f"Which number is larger, {a} or {b}?", str(max(a, b))


def _first(r: random.Random) -> tuple[str, str]:
    words = r.sample(_WORDS, r.randrange(3, 6))
    return f"Write the first of these words: {' '.join(words)}", words[0]


def _last(r: random.Random) -> tuple[str, str]:
    words = r.sample(_WORDS, r.randrange(3, 6))
    return f"Write the last of these words: {' '.join(words)}", words[-1]


def _count(r: random.Random) -> tuple[str, str]:
    words = r.sample(_WORDS, r.randrange(1, 7))
    return f"How many words are these: {' '.join(words)}", str(len(words))


def _repeat(r: random.Random) -> tuple[str, str]:
    words = r.sample(_WORDS, r.randrange(1, 4))
    return f"Repeat: {' '.join(words)}", " ".join(words)


def _contains(r: random.Random) -> tuple[str, str]:
    words = r.sample(_WORDS, 4)
    asked = r.choice(words) if r.random() < 0.5 else r.choice([w for w in _WORDS if w not in words])
    return f"Is {asked} among these words: {' '.join(words)}?", "yes" if asked in words else "no"


_TASKS: dict[str, _Maker] = {
    "add": _add,
    "subtract": _subtract,
    "larger": _larger,
    "first word": _first,
    "last word": _last,
    "count words": _count,
    "repeat": _repeat,
    "contains": _contains,
}


def instructions(seed: int) -> Iterator[AnswerTask]:
    """An endless sequence of questions, the kinds in turn, without repetition of a question of one seed."""
    r = random.Random(seed)
    seen: set[str] = set()
    while True:
        for name, make in _TASKS.items():
            for _ in range(20):  # a kind with few questions may run dry; then it sits out this round
                prompt, answer = make(r)
                if prompt not in seen:
                    seen.add(prompt)
                    yield AnswerTask(task=name, prompt=prompt, answer=answer)
                    break


def is_test(task: AnswerTask) -> bool:
    """Whether a question is held out."""
    return fraction_of(task.prompt, salt="instructions") < _TEST_SHARE


def write_instructions(folder: Path, num_train: int, num_test: int, seed: int = 0) -> None:
    """Write `chats.jsonl` (training conversations) and `tasks.jsonl` (held-out questions)."""
    train: list[AnswerTask] = []
    test: list[AnswerTask] = []
    for task in instructions(seed):
        if is_test(task) and len(test) < num_test:
            test.append(task)
        elif not is_test(task) and len(train) < num_train:
            train.append(task)
        elif len(train) >= num_train and len(test) >= num_test:
            break
    folder.mkdir(parents=True, exist_ok=True)
    chats = ({"messages": [_turn("user", t.prompt), _turn("assistant", t.answer)]} for t in train)
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    (folder / "tasks.jsonl").write_text("".join(json.dumps(to_plain(t)) + "\n" for t in test))


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
