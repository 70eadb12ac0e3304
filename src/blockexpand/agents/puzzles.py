"""Tasks that the project makes itself: arithmetic, strings, tables and small searches, offline.

In: a number and a seed. Out: tasks whose answers were worked out here, each with a short program that works the same
answer out again from the question's own numbers. They are hard to do in one's head and easy with Python, so they tell
an agent that uses its tool from one that guesses. The same seed gives the same tasks on every machine and Python.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable

from blockexpand.errors import AgentError
from blockexpand.records.agents import Task

SET = "puzzles"
MOST = 5_000
"""The makers draw from millions of questions; this many have never needed one twice more than a few times."""

# fmt: off
_WORDS = (
    "amber", "basket", "candle", "dragon", "ember", "fiddle", "garden", "hammer", "island", "jacket", "kettle",
    "lantern", "marble", "needle", "orchard", "pepper", "quarry", "ribbon", "saddle", "timber", "umbra", "velvet",
    "walnut", "yellow", "zephyr", "anchor", "bridge", "copper", "dapple", "engine",
)
# fmt: on
_NAMES = ("Ada", "Bert", "Cleo", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June", "Kurt", "Lena")
_TOWNS = ("Aldham", "Brook", "Corfe", "Dunster")

_Made = tuple[str, str, str]
"""Question, answer, program."""


def make_puzzles(count: int, seed: int = 0) -> list[Task]:
    """So many tasks, the kinds in turn, no question twice.

    Raises:
        AgentError: none, or more than `MOST`, were asked for.
    """
    if not 0 < count <= MOST:
        raise AgentError(f"cannot make {count} puzzles; expected 1 to {MOST:,}; change --puzzles")
    r = random.Random(f"puzzles {seed}")
    kinds = itertools.cycle(_KINDS.items())
    tasks: dict[str, Task] = {}
    while len(tasks) < count:
        kind, makers = next(kinds)
        question, answer, program = r.choice(makers)(r)
        if question not in tasks:
            tasks[question] = Task(
                set=SET,
                id=f"{kind}-{seed}-{len(tasks)}",
                prompt=question,
                scoring="exact",
                reference=answer,
                program=program,
            )
    return list(tasks.values())


def _expression(r: random.Random) -> _Made:
    a, b, c, d = (r.randrange(100, 1000) for _ in range(4))
    text = f"({a} * {b} - {c}) * {d}"
    return f"What is {text}?", str((a * b - c) * d), f"print({text})"


def _remainder(r: random.Random) -> _Made:
    base, power, modulus = r.randrange(20, 900), r.randrange(50, 500), r.randrange(101, 9999)
    if math.gcd(base, modulus) > 1:  # often 0, which is guessed
        return _remainder(r)
    return (
        f"Divide {base} to the power of {power} by {modulus}. What is the remainder?",
        str(pow(base, power, modulus)),
        f"print({base} ** {power} % {modulus})",
    )


def _reversed(r: random.Random) -> _Made:
    phrase = " ".join(r.sample(_WORDS, 4))
    return f"Write this phrase backwards, letter by letter: {phrase}", phrase[::-1], f"print({phrase!r}[::-1])"


def _sorted_words(r: random.Random) -> _Made:
    words = r.sample(_WORDS, 6)
    answer = " ".join(sorted(words, key=lambda word: (word[-1], word)))
    return (
        "Sort these words by their last letter, and those with the same last letter from a to z. Write them with "
        f"single spaces: {' '.join(words)}",
        answer,
        f"print(*sorted({words!r}, key=lambda word: (word[-1], word)))",
    )


_Row = tuple[str, str, int, int]


def _table(r: random.Random) -> tuple[list[_Row], str]:
    rows = [(name, r.choice(_TOWNS), r.randrange(2, 90), r.randrange(3, 60)) for name in r.sample(_NAMES, 8)]
    lines = ["name,town,pieces,price", *(",".join(map(str, row)) for row in rows)]
    return rows, "\n".join(lines)


def _turnover(r: random.Random) -> _Made:
    rows, text = _table(r)
    town = r.choice(rows)[1]
    answer = sum(pieces * price for _, place, pieces, price in rows if place == town)
    return (
        f"Here is a table of sales.\n{text}\nWhat is the sum of pieces times price over the rows of {town}?",
        str(answer),
        f"rows = {rows!r}\nprint(sum(n * p for _, town, n, p in rows if town == {town!r}))",
    )


def _digit_sum(r: random.Random) -> _Made:
    divisor, wanted, above = r.randrange(7, 40), r.randrange(12, 22), r.randrange(1_000, 9_000)
    fits = (n for n in range(above + 1, 10**6) if n % divisor == 0 and sum(map(int, str(n))) == wanted)
    answer = next(fits, None)
    if answer is None:
        return _digit_sum(r)
    return (
        f"What is the smallest whole number above {above} that {divisor} divides and whose decimal digits add up to "
        f"{wanted}?",
        str(answer),
        f"n = {above + 1}\nwhile n % {divisor} or sum(map(int, str(n))) != {wanted}:\n    n += 1\nprint(n)",
    )


_SIDE = 6


def _maze(r: random.Random) -> _Made:
    cells = [["#" if r.random() < 0.3 else "." for _ in range(_SIDE)] for _ in range(_SIDE)]
    cells[0][0] = cells[-1][-1] = "."
    rows = ["".join(line) for line in cells]
    steps = _steps(rows)
    if steps is None:
        return _maze(r)
    drawn = "\n".join(rows)
    return (
        f"In this map # is a wall and . is free.\n{drawn}\nYou go up, down, left or right, one place a step. What is "
        "the least number of steps from the top left corner to the bottom right one?",
        str(steps),
        f"rows = {rows!r}\nseen, edge, steps = {{(0, 0)}}, [(0, 0)], 0\nwhile ({_SIDE - 1}, {_SIDE - 1}) not in edge:\n"
        "    edge = {(y + b, x + a) for y, x in edge for b, a in ((0, 1), (1, 0), (0, -1), (-1, 0))\n"
        f"            if 0 <= y + b < {_SIDE} and 0 <= x + a < {_SIDE} and rows[y + b][x + a] == '.'}} - seen\n"
        "    seen |= edge\n    steps += 1\nprint(steps)",
    )


def _steps(rows: list[str]) -> int | None:
    """The length of the shortest way through, or None."""
    goal = (_SIDE - 1, _SIDE - 1)
    far, queue = {(0, 0): 0}, deque([(0, 0)])
    while queue:
        y, x = queue.popleft()
        for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            inside = 0 <= place[0] < _SIDE and 0 <= place[1] < _SIDE
            if inside and place not in far and rows[place[0]][place[1]] == ".":
                far[place] = far[y, x] + 1
                queue.append(place)
    return far.get(goal)


_KINDS: dict[str, tuple[Callable[[random.Random], _Made], ...]] = {
    "arithmetic": (_expression, _remainder),
    "string": (_reversed, _sorted_words),
    "table": (_turnover,),
    "search": (_digit_sum, _maze),
}
