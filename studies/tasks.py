"""Six small tasks that the project makes itself, for learning in a row (TRACE in kind).

In: a task's name, how many questions, a seed. Out: `Question`s, each with one right answer, none of them both to
learn from and held out: a question belongs to one of the two by a hash of its words. Refused: an unknown task, more
questions than a task has.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from blockexpand.digests import fraction_of
from blockexpand.errors import UsageError, nearest

_TEST_SHARE = 0.2
_PATIENCE = 200
"""Questions drawn for each that is wanted, at most: a task may run dry."""
_KINDS = {
    "food": ("bread", "soup", "cheese", "rice", "apple", "cake", "milk", "egg"),
    "animal": ("dog", "horse", "bird", "fish", "cow", "sheep", "cat", "fox"),
    "weather": ("rain", "snow", "wind", "storm", "cloud", "sun", "fog", "ice"),
}
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Mary", "John", "Paul", "Rose", "Tom", "Lucy")
_CITIES = ("Paris", "London", "Rome", "Berlin", "Madrid", "Vienna", "Boston", "Chicago", "Dublin", "Oslo")
_MONTHS = ("January", "March", "April", "May", "June", "July", "August", "October")
_THINGS = ("books", "apples", "coins", "stones", "letters", "cups", "chairs", "birds")
_OPERATIONS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
_LETTERS = "abcdefghijkmnpqrstuvwxyz"
_PLAIN = {
    "purchased": "bought",
    "commenced": "began",
    "assisted": "helped",
    "observed": "saw",
    "constructed": "built",
    "located": "found",
}
_ROUNDABOUT = {"due to the fact that": "because", "in spite of the fact that": "though", "at the time when": "when"}
_ENDINGS = ("it was late", "it was cold", "the day was long", "the road was open", "the work was done")

_Maker = Callable[[random.Random], tuple[str, str]]


def _classify(r: random.Random) -> tuple[str, str]:
    kind = r.choice(list(_KINDS))
    words = r.sample(_KINDS[kind], 3)
    return f"Is this food, animal or weather: {' '.join(words)}?", kind


def _extract(r: random.Random) -> tuple[str, str]:
    name, city, month = r.choice(_NAMES), r.choice(_CITIES), r.choice(_MONTHS)
    asked, answer = r.choice((("Who", name), ("Which city", city), ("Which month", month)))
    return f"{asked}? In {month} {name} went to {city}.", answer


def _code(r: random.Random) -> tuple[str, str]:
    name = r.choice(list(_OPERATIONS))
    left, right = r.sample(_LETTERS, 2)
    return f"def {name}({left}, {right}):", f"return {left} {_OPERATIONS[name]} {right}"


def _sum(r: random.Random) -> tuple[str, str]:
    # By places, without carrying: three digits to be put in a row, which a model of seven million parameters can learn.
    hundreds, tens, ones = (r.randrange(1, 10) for _ in range(3))
    return f"{100 * hundreds} + {10 * tens} + {ones} =", str(100 * hundreds + 10 * tens + ones)


def _story(r: random.Random) -> tuple[str, str]:
    a, b, name, thing = r.randrange(2, 10), r.randrange(1, 6), r.choice(_NAMES), r.choice(_THINGS)
    return f"{name} has {a} {thing} and gets {b} more. How many {thing}?", str(a + b)


def _simplify(r: random.Random) -> tuple[str, str]:
    name, thing, end = r.choice(_NAMES), r.choice(_THINGS), r.choice(_ENDINGS)
    verb, joined = r.choice(list(_PLAIN)), r.choice(list(_ROUNDABOUT))
    simple = f"{name} {_PLAIN[verb]} the {thing} {_ROUNDABOUT[joined]} {end}."
    return f"Say it simply: {name} {verb} the {thing} {joined} {end}.", simple


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question and its answer."""

    prompt: str
    answer: str

    @property
    def turns(self) -> list[dict[str, str]]:
        """As a conversation."""
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of question."""

    like: str
    """The task of TRACE that it stands for."""
    make: _Maker
    measure: Literal["whole", "share"]
    """Its score: the share of answers that are right to the letter, or of their tokens that are right, each given
    those before it."""


TASKS: dict[str, Task] = {
    "classification": Task(like="C-STANCE, FOMC", make=_classify, measure="whole"),
    "extraction": Task(like="ScienceQA, MeetingBank", make=_extract, measure="whole"),
    "code": Task(like="Py150", make=_code, measure="share"),
    "sums": Task(like="NumGLUE-cm", make=_sum, measure="share"),
    "stories": Task(like="NumGLUE-ds", make=_story, measure="whole"),
    "simplification": Task(like="20Minuten", make=_simplify, measure="share"),
}


def make_task(name: str, num_train: int, num_test: int, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """Questions to learn from, and questions held out.

    Raises:
        UsageError: no task has this name, or it has not so many questions.
    """
    if name not in TASKS:
        raise UsageError(f"no task {name!r}; expected one of those that are made here; {nearest(name, TASKS)}")
    r = random.Random(f"{name} {seed}")
    train: list[Question] = []
    test: list[Question] = []
    seen: set[str] = set()
    for _ in range(_PATIENCE * (num_train + num_test)):
        if len(train) >= num_train and len(test) >= num_test:
            return train, test
        prompt, answer = TASKS[name].make(r)
        if prompt in seen:
            continue
        seen.add(prompt)
        mine, most = (test, num_test) if fraction_of(prompt, salt="tasks") < _TEST_SHARE else (train, num_train)
        if len(mine) < most:
            mine.append(Question(prompt=prompt, answer=answer))
    raise UsageError(
        f"the task {name!r} has {len(train)} questions to learn from and {len(test)} to hold out; expected {num_train} "
        f"and {num_test}; ask for fewer"
    )
