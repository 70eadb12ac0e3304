"""Kinds of block that a config states by numbers alone: can the numbers say it for the deeper stack, and which?

In: a rule of a family file, the base's config, and for each block of the new stack the old block whose kind it
has. Out: the numbers' new values, or the reason why none will do. A rule's numbers are never guessed: what they
say is worked out block by block and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.errors import PlanError
from blockexpand.families import Between, Every, Family, First

Formula = First | Every | Between


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Numbers, and what they are in force in the base."""

    changes: dict[str, int]
    """New values of the numbers that change."""
    before: dict[str, int]
    """What these are in the base."""


def whole(config: dict[str, Any], key: str, default: int) -> int:
    """A whole number of the config; missing and null mean the class's default.

    Raises:
        PlanError: it is something else.
    """
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise PlanError(f"config.json: {key} is {value!r}; expected a whole number; mend the base's config.json")
    return value


def solve(rule: Formula, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Solution | None:
    """The numbers for the deeper stack, the base's own where they will do; None when there are none.

    Raises:
        PlanError: a number of the base is no whole number.
    """
    numbers = _numbers(rule, config, depth)
    kinds = _kinds(rule, numbers, depth)
    wanted = [kinds[source] for source in sources]
    for candidate in _candidates(rule, numbers, depth, wanted):
        if _kinds(rule, candidate, len(sources)) == wanted:
            changed = {key: value for key, value in candidate.items() if value != numbers[key]}
            return Solution(changes=changed, before={key: numbers[key] for key in changed})
    return None


def unsayable(family: Family, config: dict[str, Any], sources: Sequence[int]) -> str | None:
    """Why the config cannot state such a stack; None when it can."""
    text, depth = family.text(config), family.depth(config)
    for rule in family.per_layer:
        if isinstance(rule, First | Every | Between) and solve(rule, text, depth, sources) is None:
            stated = ", ".join(f"{key} {value}" for key, value in _numbers(rule, text, depth).items())
            return f"config.json states the kinds of block by numbers ({stated}), and none describe such a stack"
    return None


def _numbers(rule: Formula, config: dict[str, Any], depth: int) -> dict[str, int]:
    match rule:
        case First():
            return {rule.key: whole(config, rule.key, rule.default)}
        case Every():
            return {
                rule.period_key: _positive(config, rule.period_key, rule.period_default),
                rule.offset_key: whole(config, rule.offset_key, rule.offset_default),
            }
        case Between():
            end = whole(config, rule.end_key, -1)
            return {
                rule.start_key: whole(config, rule.start_key, rule.start_default),
                rule.end_key: depth - 1 if end == -1 else end,
                rule.interval_key: _positive(config, rule.interval_key, 1),
            }


def _positive(config: dict[str, Any], key: str, default: int) -> int:
    value = whole(config, key, default)
    if value < 1:
        raise PlanError(f"config.json: {key} is {value}; expected 1 or more; mend the base's config.json")
    return value


def _kinds(rule: Formula, numbers: dict[str, int], depth: int) -> list[bool]:
    match rule:
        case First():
            return [i < numbers[rule.key] for i in range(depth)]
        case Every():
            return [i % numbers[rule.period_key] == numbers[rule.offset_key] for i in range(depth)]
        case Between():
            start, end = numbers[rule.start_key], numbers[rule.end_key]
            return [start <= i <= end and (i + 1) % numbers[rule.interval_key] == 0 for i in range(depth)]


def _candidates(rule: Formula, numbers: dict[str, int], depth: int, wanted: list[bool]) -> list[dict[str, int]]:
    """Numbers worth trying, the base's own first; one of them is right if any are."""
    on = [i for i, kind in enumerate(wanted) if kind]
    if isinstance(rule, First):
        return [numbers, {rule.key: len(on)}]
    if not on:
        # None of that kind: out of reach.
        beyond = len(wanted)
        new = (
            {rule.period_key: beyond + 1, rule.offset_key: beyond}
            if isinstance(rule, Every)
            else {**numbers, rule.start_key: beyond, rule.end_key: beyond}
        )
        return [numbers, new]
    gap = on[1] - on[0] if len(on) > 1 else len(wanted)
    if isinstance(rule, Every):
        return [numbers, {rule.period_key: gap, rule.offset_key: on[0]}]
    last = len(wanted) - 1 if numbers[rule.end_key] >= depth - 1 else on[-1]
    ends = {rule.start_key: on[0], rule.end_key: on[-1]}
    return [
        {**numbers, rule.end_key: last},
        {**numbers, **ends},
        {**ends, rule.interval_key: gap if len(on) > 1 else 1},
    ]
