"""Where new blocks go: arithmetic on block indices alone.

In: how many blocks a model has, how many new ones are wanted, and how they are to be placed. Out: for each
new block the old block it comes after and its donor, and the sizes of the groups. Refused, with numbers that
would work: counts that are not positive, more groups than blocks, positions outside the model.

An uneven division is never truncated: the groups' borders are floor(i * depth / groups), so that sizes differ
by one at most and the larger groups lie evenly among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from blockexpand.errors import PlanError, nearest
from blockexpand.records.plan import Insertion, PlacementKind

_BY_COUNT = ("interleaved", "prefix", "suffix")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The answer to a request for blocks."""

    kind: PlacementKind
    """How they were placed."""
    insertions: tuple[Insertion, ...]
    """The new blocks from the bottom of the stack to its top."""
    group_sizes: tuple[int, ...] = ()
    """Old blocks in each group, bottom first; empty unless interleaved."""


def place(
    depth: int, blocks: int | None, placement: str, after: Sequence[int | Insertion] | None, per_group: int
) -> Placed:
    """Turn a request into insertions; one in `after` that says its donor is taken as it is.

    Raises:
        PlanError: the request contradicts itself, or does not fit a model of `depth` blocks.
    """
    if placement not in _BY_COUNT:
        hint = nearest(str(placement), _BY_COUNT)
        raise PlanError(f"unknown placement {placement!r}; expected one of {', '.join(_BY_COUNT)}; {hint}")
    if (blocks is None) == (after is None):
        given = "both" if blocks is not None else "neither"
        raise PlanError(
            f"{given} of blocks ({blocks}) and after ({_listed(after)}) given; expected exactly one: a number of new "
            f"blocks, e.g. blocks={max(1, depth // 4)}, or the old blocks they go after, e.g. after={depth - 1}"
        )
    check_count("per_group", per_group)
    if after is not None:
        _refuse_beside_after(placement, per_group)
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


def _listed(after: Sequence[int | Insertion] | None) -> str:
    return "none" if after is None else ", ".join(str(a) for a in after)


def check_count(name: str, value: int) -> None:
    """Refuse what is no positive whole number.

    Raises:
        PlanError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise PlanError(f"{name} is {value!r}; expected a whole number, 1 or more; e.g. {name}=1")


def _refuse_beside_after(placement: str, per_group: int) -> None:
    if placement != "interleaved":
        raise PlanError(
            f"placement {placement!r} and a list of positions given; expected one of the two; leave one out"
        )
    if per_group != 1:
        raise PlanError(
            f"per_group {per_group} and a list of positions given; expected one of the two; repeat a position in the "
            "list to put several blocks there"
        )


def _interleaved(depth: int, blocks: int, per_group: int) -> Placed:
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
    return Placed(kind="interleaved", insertions=insertions, group_sizes=sizes)


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


def _at_one_end(depth: int, blocks: int, placement: str) -> Placed:
    if blocks > depth:
        raise PlanError(
            f"cannot place {blocks} new blocks at one end: the model has {depth} blocks to copy, one for each; use "
            f"blocks={depth} or fewer"
        )
    if placement == "prefix":
        insertions = tuple(Insertion(after=-1, donor=donor) for donor in range(blocks))
        return Placed(kind="prefix", insertions=insertions)
    insertions = tuple(Insertion(after=depth - 1, donor=donor) for donor in range(depth - blocks, depth))
    return Placed(kind="suffix", insertions=insertions)


def _explicit(depth: int, after: Sequence[int | Insertion]) -> Placed:
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
    return Placed(kind="explicit", insertions=insertions)
