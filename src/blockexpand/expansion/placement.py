"""Where new blocks go: arithmetic on block indices alone.

In: how many blocks a model has, how many new ones are wanted, and how they are to be placed. Out: for each
new block the old block it comes after and its donor, and the sizes of the groups. Refused, with numbers that
would work: counts that are not positive, more groups than blocks, positions outside the model.

An uneven division is never truncated: the groups' borders are floor(i * depth / groups), so that sizes differ
by one at most and the larger groups lie evenly among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from blockexpand.errors import PlanError, nearest
from blockexpand.records.plan import Insertion, Placement, PlacementKind

_BY_COUNT = ("interleaved", "prefix", "suffix")


def place(
    depth: int, blocks: int | None, placement: str, after: Sequence[int | Insertion] | None, per_group: int
) -> tuple[Placement, tuple[Insertion, ...]]:
    """How the new blocks lie, and each from the bottom of the stack up; one in `after` that says its donor keeps it.

    Raises:
        PlanError: the request contradicts itself, or does not fit a model of `depth` blocks.
    """
    if placement not in _BY_COUNT:
        hint = nearest(str(placement), _BY_COUNT)
        raise PlanError(f"unknown placement {placement!r}; expected one of {', '.join(_BY_COUNT)}; {hint}")
    if (blocks is None) == (after is None):
        given = "both" if blocks is not None else "neither"
        listed = "none" if after is None else ", ".join(map(str, after))
        raise PlanError(
            f"{given} of blocks ({blocks}) and after ({listed}) given; expected exactly one: a number of new "
            f"blocks, e.g. blocks={max(1, depth // 4)}, or the old blocks they go after, e.g. after={depth - 1}"
        )
    check_count("per_group", per_group)
    if after is not None:
        if placement != "interleaved" or per_group != 1:
            raise PlanError(
                f"placement {placement!r} with per_group {per_group} and a list of positions given; expected the list "
                "alone; repeat a position in it to put several blocks there"
            )
        return _explicit(depth, after)
    assert blocks is not None
    check_count("blocks", blocks)
    if placement == "interleaved":
        return _interleaved(depth, blocks, per_group)
    if per_group != 1:
        raise PlanError(
            f"per_group {per_group} with placement {placement!r}; expected it only with 'interleaved', where there are "
            "groups; leave it out"
        )
    return _at_one_end(depth, blocks, placement)


def check_count(name: str, value: int) -> None:
    """Refuse what is no positive whole number.

    Raises:
        PlanError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{name} is {value!r}; expected a whole number, 1 or more; e.g. {name}=1")


def _interleaved(depth: int, blocks: int, per_group: int) -> tuple[Placement, tuple[Insertion, ...]]:
    if blocks % per_group:
        lower = blocks - blocks % per_group
        options = " or ".join(str(n) for n in (lower, lower + per_group) if n)
        raise PlanError(
            f"cannot put {blocks} new blocks in groups of {per_group}: {blocks} is not a multiple of {per_group}; use "
            f"blocks={options}, or per_group=1"
        )
    num_groups = blocks // per_group
    if num_groups > depth or per_group > depth // num_groups:
        raise PlanError(_too_many(depth, blocks, per_group))
    borders = [i * depth // num_groups for i in range(num_groups + 1)]
    insertions = tuple(
        Insertion(after=top - 1, donor=donor) for top in borders[1:] for donor in range(top - per_group, top)
    )
    sizes = tuple(top - bottom for bottom, top in pairwise(borders))
    return Placement(kind="interleaved", per_group=per_group, group_sizes=sizes), insertions


def _too_many(depth: int, blocks: int, per_group: int) -> str:
    num_groups = blocks // per_group
    if num_groups > depth:
        what = f"{depth} old blocks cannot be divided into {num_groups} groups"
    else:
        smallest = depth // num_groups
        what = f"the smallest of {num_groups} groups has {smallest} blocks, and per_group is {per_group}"
    most = depth // per_group * per_group
    with_this = f"use blocks={most} or fewer with per_group={per_group}" if most else "use a smaller per_group"
    return f"cannot place {blocks} new blocks: {what}; expected each group to have its own donors; {with_this}"


def _at_one_end(depth: int, blocks: int, placement: str) -> tuple[Placement, tuple[Insertion, ...]]:
    if blocks > depth:
        raise PlanError(
            f"cannot place {blocks} new blocks at one end: the model has {depth} blocks to copy, one for each; use "
            f"blocks={depth} or fewer"
        )
    kind: PlacementKind = "prefix" if placement == "prefix" else "suffix"
    after, donors = (-1, range(blocks)) if kind == "prefix" else (depth - 1, range(depth - blocks, depth))
    return Placement(kind=kind), tuple(Insertion(after=after, donor=donor) for donor in donors)


def _explicit(depth: int, after: Sequence[int | Insertion]) -> tuple[Placement, tuple[Insertion, ...]]:
    if isinstance(after, str) or not after:
        raise PlanError(f"after is {after!r}; expected the old blocks to stack new ones on; e.g. after=(3, 7)")
    wanted = [item if isinstance(item, Insertion) else Insertion(after=item, donor=item) for item in after]
    for position in (p for item in wanted for p in (item.after, item.donor)):
        if not isinstance(position, int) or isinstance(position, bool) or not -1 <= position < depth:
            raise PlanError(
                f"no block {position!r} to put a new one after; expected 0 to {depth - 1}, the blocks of this model, "
                "or -1 for below the first; change the list"
            )
    insertions = tuple(
        Insertion(after=item.after, donor=max(item.donor, 0)) for item in sorted(wanted, key=lambda one: one.after)
    )
    return Placement(kind="explicit"), insertions
