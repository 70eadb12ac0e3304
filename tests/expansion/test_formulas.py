"""Kinds of block stated by numbers alone: solved when any numbers will do, and only then."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from blockexpand.expansion.deeper_config import Formula, solve
from blockexpand.families.rules import Between, Every, First

FIRST = First(kind="first", key="k", default=2)
EVERY = Every(kind="every", period_key="p", period_default=4, offset_key="o", offset_default=1)
BETWEEN = Between(kind="between", start_key="s", start_default=1, end_key="e", interval_key="n")
MOST = 7
"""The deepest stack tried, and so the largest number that can matter, but for those that are out of reach."""


def kinds(rule: Formula, numbers: dict[str, Any], depth: int) -> list[bool]:
    """What the numbers say, written down again from transformers' model code."""
    if isinstance(rule, First):
        return [i < numbers["k"] for i in range(depth)]
    if isinstance(rule, Every):
        return [i % numbers["p"] == numbers["o"] for i in range(depth)]
    end = depth - 1 if numbers["e"] == -1 else numbers["e"]
    return [(i + 1) % numbers["n"] == 0 and numbers["s"] <= i <= end for i in range(depth)]


def all_numbers(rule: Formula) -> list[dict[str, int]]:
    if isinstance(rule, First):
        return [{"k": k} for k in range(MOST + 1)]
    if isinstance(rule, Every):
        return [{"p": p, "o": o} for p, o in itertools.product(range(1, MOST + 2), range(MOST + 1)) if o < p]
    sizes = itertools.product(range(MOST + 1), range(MOST + 1), range(1, MOST + 2))
    return [{"s": s, "e": e, "n": n} for s, e, n in sizes]


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Formula, dict[str, int], int, list[int]]:
    """A rule, a base's numbers and depth, and a deeper stack's sources: each old block once, in order, and copies."""
    rule = draw(st.sampled_from([FIRST, EVERY, BETWEEN]))
    depth = draw(st.integers(1, 5))
    config = draw(st.sampled_from(all_numbers(rule)))
    new = draw(st.lists(st.integers(0, depth - 1), min_size=1, max_size=MOST - depth))
    return rule, config, depth, sorted([*range(depth), *new])


@given(stacks())
def test_numbers_are_found_exactly_when_there_are_any(case: tuple[Formula, dict[str, int], int, list[int]]):
    rule, config, depth, sources = case
    wanted = [kinds(rule, config, depth)[source] for source in sources]
    found = solve(rule, config, depth, sources)
    if found is None:
        assert not any(kinds(rule, numbers, len(sources)) == wanted for numbers in all_numbers(rule))
    else:
        assert kinds(rule, config | found.changes, len(sources)) == wanted
        assert set(found.before) == set(found.changes)
        assert all(config[key] == value for key, value in found.before.items())


def test_missing_numbers_are_the_classes_own():
    assert solve(FIRST, {}, 4, [0, 1, 1, 2, 3]).changes == {"k": 3}  # type: ignore[union-attr]
    assert solve(BETWEEN, {"e": -1}, 4, [0, 1, 2, 3, 3]).changes == {"e": 4}  # type: ignore[union-attr]
