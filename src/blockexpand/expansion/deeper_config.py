"""The config of a deeper stack: only the entries that speak of single blocks change.

In: the base's config and, for each block of the new stack, the old block whose kind it has. Out: the new
values of the entries that change, each named by its path, and what a reader should know. Refused: a list that is
not as long as the model is deep, and kinds of block that the config's numbers cannot state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.errors import PlanError
from blockexpand.families import Family, prefixed, switched_on
from blockexpand.families.rules import (
    Between,
    CopyFromDonor,
    Every,
    First,
    Indices,
    Pattern,
    PerLayer,
    Repeats,
    Threshold,
    WrittenOut,
)
from blockexpand.records.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What becomes of the config."""

    changes: dict[str, Any]
    """New values by entry."""
    before: dict[str, Any]
    """What these entries are in the base, as they are in force there: stated, derived or by default."""
    notes: tuple[str, ...] = ()
    """What a person should know about them."""


_NOTHING = Rewrite(changes={}, before={})


def rewrite(family: Family, config: dict[str, Any], sources: Sequence[int]) -> Rewrite:
    """The changes for a stack whose block i has the kind of the base's block `sources[i]`.

    Raises:
        PlanError: the config speaks of another number of blocks than it has, or cannot state such a stack.
    """
    depth, text = family.depth(config), family.text(config)
    changes: dict[str, Any] = {family.depth_key: len(sources)}
    before: dict[str, Any] = {family.depth_key: depth}
    notes: tuple[str, ...] = ()
    for rule in family.per_layer:
        result = _apply(rule, text, depth, sources)
        if result is None:
            raise PlanError(
                f"{unsayable(family, config, sources)}; expected each old block to keep its kind and each new one to "
                "have its donor's; place the new blocks elsewhere"
            )
        changes |= result.changes
        before |= result.before
        notes += result.notes
    for key, value in {**before, **changes}.items():
        if not _is_finite(value):
            raise PlanError(
                f"config.json: {key} holds {value!r:.80}, which no plan can state; expected finite numbers and words; "
                "mend the base's config.json"
            )
    where = family.path_of(config)
    return Rewrite(changes=prefixed(where, changes), before=prefixed(where, before), notes=notes)


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _apply(rule: PerLayer, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Rewrite | None:
    match rule:
        case CopyFromDonor():
            kinds = _list_of(config, rule.key, depth)
            return _NOTHING if kinds is None else _copied(rule.key, kinds, sources)
        case WrittenOut():
            stated = _list_of(config, rule.key, depth)
            return _copied(rule.key, list(rule.items) if stated is None else stated, sources)
        case Threshold():
            return _rewrite_threshold(rule, config, depth, sources)
        case Pattern():
            return _rewrite_pattern(rule, config, depth, sources)
        case Indices():
            return _rewrite_indices(rule, config, depth, sources)
        case Repeats():
            return _rewrite_repeats(rule, config, depth, sources)
        case _:
            return solve(rule, config, depth, sources)


def _copied(key: str, kinds: list[Any], sources: Sequence[int]) -> Rewrite:
    return Rewrite(changes={key: [kinds[source] for source in sources]}, before={key: kinds})


def _list_of(config: dict[str, Any], key: str, depth: int) -> list[Any] | None:
    value = config.get(key)
    if value is not None and (not isinstance(value, list) or len(value) != depth):
        length = f"{len(value)} items" if isinstance(value, list) else repr(value)
        raise PlanError(
            f"config.json: {key} has {length}; expected one for each of the {depth} blocks; mend the base's config.json"
        )
    return value


def _rewrite_threshold(rule: Threshold, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Rewrite:
    explicit = _list_of(config, rule.list_key, depth)
    needed = rule.also_needs not in config or config[rule.also_needs] is not None
    in_force = needed and switched_on(config, rule.switch, rule.switch_default)
    if not in_force:
        return _NOTHING if explicit is None else _copied(rule.list_key, explicit, sources)
    threshold = config.get(rule.key, rule.key_default)
    if not isinstance(threshold, int) or isinstance(threshold, bool):
        raise PlanError(f"config.json: {rule.key} is {threshold!r}; expected a block index; mend the config.json")
    by_threshold = [rule.below if i < threshold else rule.from_there_on for i in range(depth)]
    kinds = by_threshold if explicit is None else explicit
    new_kinds = [kinds[source] for source in sources]
    changes: dict[str, Any] = {rule.list_key: new_kinds}
    before: dict[str, Any] = {rule.list_key: kinds}
    num_below = new_kinds.count(rule.below)
    still_one = new_kinds == [rule.below] * num_below + [rule.from_there_on] * (len(sources) - num_below)
    if kinds == by_threshold and still_one:
        # With nothing above it the threshold only has to stay out of reach.
        changes[rule.key] = max(threshold, num_below) if num_below == len(sources) else num_below
        return Rewrite(changes=changes, before={**before, rule.key: threshold})
    note = _note(rule.key, threshold, rule.list_key)
    return Rewrite(changes=changes, before=before, notes=(note,) if kinds == by_threshold else ())


def _note(key: str, value: object, list_key: str) -> str:
    return (
        f"{key} stays {value}, which does not describe the deeper stack; {list_key} does, block by "
        f"block: a reader that knows only {key} would run it wrongly"
    )


def _rewrite_pattern(rule: Pattern, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Rewrite:
    explicit = _list_of(config, rule.key, depth) if config.get(rule.key) else None
    if explicit is not None:
        return _copied(rule.key, explicit, sources)
    if rule.switch and not switched_on(config, rule.switch, False):
        return _NOTHING
    below = whole(config, rule.below_key, rule.below_default) if rule.below_key else max(depth, len(sources))
    period = _positive(config, rule.period_key, rule.period_default) if rule.period_key else rule.period_default

    def derived(length: int) -> list[Any]:
        return [rule.others if (i + 1) % period and i < below else rule.last for i in range(length)]

    result = _copied(rule.key, derived(depth), sources)
    if result.changes[rule.key] == derived(len(sources)):
        return result
    note = _note(rule.period_key or "the period", period, rule.key)
    return Rewrite(changes=result.changes, before=result.before, notes=(note,))


def _rewrite_indices(rule: Indices, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Rewrite:
    stated = config.get(rule.key)
    if stated is not None and not (
        isinstance(stated, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in stated)
    ):
        raise PlanError(f"config.json: {rule.key} is {stated!r:.80}; expected block indices; mend the config.json")
    step = _positive(config, rule.step_key, rule.default) if rule.step_key else 1
    every = _positive(config, rule.every_key, rule.default) if rule.every_key else 0
    derived = [i for i in range(depth) if (i + 1) % every == 0] if every else []
    before = derived if stated is None else list(stated)
    members = {i for i in range(depth) if i in before or (i + 1) % step}
    after = [position for position, source in enumerate(sources) if source in members]
    if stated is None and not members:
        return _NOTHING
    changes: dict[str, Any] = {rule.key: after}
    old: dict[str, Any] = {rule.key: before}
    if rule.step_key and step != 1:
        changes[rule.step_key], old[rule.step_key] = 1, step
    return Rewrite(changes=changes, before=old)


def _rewrite_repeats(rule: Repeats, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Rewrite:
    stated = config.get(rule.key)
    pairs: Any = stated if stated is not None else [[list(rule.default), -(-depth // len(rule.default))]]
    proper = isinstance(pairs, list) and all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[0], list) and isinstance(p[1], int) for p in pairs
    )
    kinds: list[Any] = []
    for kind, times in pairs if proper else []:
        kinds += kind * times
    if len(kinds) != depth:
        raise PlanError(
            f"config.json: {rule.key} is {pairs!r:.80}; expected lists of kinds and how often each repeats, {depth} in "
            "all; mend the base's config.json"
        )
    new = [kinds[source] for source in sources]
    return Rewrite(
        changes={rule.key: [[new, 1]], rule.list_key: new},
        before={rule.key: pairs, rule.list_key: kinds},
    )


def stack_entries(family: Family, config: dict[str, Any], sources: Sequence[int]) -> dict[str, Any]:
    """The entries that change when a base in memory gets a stack whose block i has the kind of its block `sources[i]`.

    They are named as among the text settings.

    Raises:
        PlanError: the config speaks of another number of blocks than it has, or cannot state such a stack.
    """
    return _bare(family, rewrite(family, config, sources).changes)


def base_entries(family: Family, plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    """The way back: what the entries of a deeper model's config are for its old blocks alone.

    `config` is the deeper model's as it is in memory, where classes also spell out lists that the file left
    to them; such a list is cut down to the old blocks' items. Names are those among the text settings.
    """
    text = family.text(config)
    cut = [key for rule in family.per_layer for key in _by_block(rule)]
    entries = {key: value for key, value in _bare(family, plan.config_before).items() if key not in cut}
    for key in cut:
        kinds = _list_of(text, key, plan.num_blocks) if text.get(key) else None
        if kinds is not None:
            entries[key] = [kinds[position] for position in plan.old_to_new]
    return entries


def _bare(family: Family, entries: dict[str, Any]) -> dict[str, Any]:
    return {path.removeprefix(f"{family.config_section}."): value for path, value in entries.items()}


def _by_block(rule: PerLayer) -> tuple[str, ...]:
    """The entry with one item a block that a rule is about, if it is."""
    match rule:
        case Threshold():
            return (rule.list_key,)
        case CopyFromDonor() | WrittenOut() | Pattern():
            return (rule.key,)
        case _:
            return ()


# --- kinds of block that a config states by numbers alone ---

Formula = First | Every | Between


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


def solve(rule: Formula, config: dict[str, Any], depth: int, sources: Sequence[int]) -> Rewrite | None:
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
            return Rewrite(changes=changed, before={key: numbers[key] for key in changed})
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
