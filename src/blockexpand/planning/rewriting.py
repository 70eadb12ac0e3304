"""The config of a deeper stack: only the entries that speak of single blocks change.

In: the base's config and, for each block of the new stack, the old block whose kind it has. Out: the new
values of the entries that change, and what a reader should know. Refused: a list that is not as long as the
model is deep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.errors import PlanError
from blockexpand.families import CopyFromDonor, Family, Threshold, switched_on
from blockexpand.planning.plans import Plan


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """What becomes of the config."""

    changes: dict[str, Any]
    """New values by entry."""
    before: dict[str, Any]
    """What these entries are in the base, as they are in force there: stated, derived or by default."""
    notes: tuple[str, ...] = ()
    """What a person should know about them."""


def rewrite(family: Family, config: dict[str, Any], sources: Sequence[int]) -> Rewrite:
    """The changes for a stack whose block i has the kind of the base's block `sources[i]`.

    Raises:
        PlanError: the config speaks of another number of blocks than it has.
    """
    depth = family.depth(config)
    changes: dict[str, Any] = {family.depth_key: len(sources)}
    before: dict[str, Any] = {family.depth_key: depth}
    notes: tuple[str, ...] = ()
    for rule in family.per_layer:
        if isinstance(rule, CopyFromDonor):
            kinds = _list_of(config, rule.key, depth)
            if kinds is not None:
                changes[rule.key] = [kinds[source] for source in sources]
                before[rule.key] = kinds
        else:
            result = _rewrite_threshold(rule, config, depth, sources)
            changes |= result.changes
            before |= result.before
            notes += result.notes
    return Rewrite(changes=changes, before=before, notes=notes)


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
        if explicit is None:
            return Rewrite(changes={}, before={})
        copied = [explicit[source] for source in sources]
        return Rewrite(changes={rule.list_key: copied}, before={rule.list_key: explicit})
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
    note = (
        f"{rule.key} stays {threshold}, which does not describe the deeper stack; {rule.list_key} does, block by "
        f"block: a reader that knows only {rule.key} would run it wrongly"
    )
    return Rewrite(changes=changes, before=before, notes=(note,) if kinds == by_threshold else ())


def base_entries(family: Family, plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    """The way back: what the entries of a deeper model's config are for its old blocks alone.

    `config` is the deeper model's as it is in memory, where classes also spell out lists that the file left
    to them; such a list is cut down to the old blocks' items.
    """
    entries = {key: value for key, value in plan.config_before.items() if not isinstance(value, list)}
    for rule in family.per_layer:
        key = rule.key if isinstance(rule, CopyFromDonor) else rule.list_key
        kinds = _list_of(config, key, plan.num_blocks)
        if kinds is not None:
            entries[key] = [kinds[position] for position in plan.old_to_new]
    return entries
