"""Where new blocks go."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.errors import PlanError
from blockexpand.expansion.placement import place
from blockexpand.records.plan import Insertion, Placement, number

Placed = tuple[Placement, tuple[Insertion, ...]]


def positions(placed: Placed) -> list[int]:
    return [block.position for block in number(placed[1])]


def pairs(placed: Placed) -> list[tuple[int, int]]:
    return [(item.after, item.donor) for item in placed[1]]


def test_the_papers_llama_pro():
    """PAPER.md 1: L=32, N=8, M=4, P=1 gives 4, 9, 14, ..., 39, each a copy of the block below it."""
    placed = place(32, 8, "interleaved", None, 1)
    assert positions(placed) == [4, 9, 14, 19, 24, 29, 34, 39]
    assert pairs(placed) == [(i, i) for i in (3, 7, 11, 15, 19, 23, 27, 31)]
    assert placed[0].group_sizes == (4,) * 8


@given(data=st.data(), depth=st.integers(1, 200), per_group=st.integers(1, 6))
def test_every_interleaving_is_even_and_copies_the_top_of_each_group(data: Any, depth: int, per_group: int):
    groups = data.draw(st.integers(1, max(1, depth // per_group)))
    if depth < per_group:
        return
    placed = place(depth, groups * per_group, "interleaved", None, per_group)
    assert sum(placed[0].group_sizes) == depth
    assert len(placed[0].group_sizes) == groups
    assert max(placed[0].group_sizes) - min(placed[0].group_sizes) <= 1
    top = 0
    expected = []
    for size in placed[0].group_sizes:
        top += size
        expected += [Insertion(after=top - 1, donor=top - per_group + k) for k in range(per_group)]
    assert list(placed[1]) == expected
    # Larger groups lie among the smaller ones: any run of groups is within one block of its fair share.
    for i in range(groups):
        for j in range(i + 1, groups + 1):
            assert abs(sum(placed[0].group_sizes[i:j]) * groups - (j - i) * depth) < groups


@given(
    depth=st.integers(1, 60),
    after=st.lists(st.integers(-1, 59), min_size=1, max_size=12),
)
def test_positions_are_where_the_new_blocks_end_up(depth: int, after: list[int]):
    after = [min(a, depth - 1) for a in after]
    blocks = number(place(depth, None, "interleaved", after, 1)[1])
    stack: list[Any] = []
    for old in range(-1, depth):
        stack += [] if old < 0 else [old]
        stack += [b for b in blocks if b.after == old]
    for block in blocks:
        assert stack[block.position] is block
    assert len({block.id for block in blocks}) == len(blocks)


WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"blocks": None}, ["neither of blocks (None) and after (none)", "blocks=8", "after=31"]),
    ({"after": (3, 7)}, ["both of blocks (8) and after (3, 7)"]),
    ({"blocks": 0}, ["blocks is 0", "1 or more"]),
    ({"blocks": -3}, ["blocks is -3"]),
    ({"blocks": 2.0}, ["blocks is 2.0"]),
    ({"blocks": True}, ["blocks is True"]),
    ({"per_group": 0}, ["per_group is 0"]),
    ({"per_group": 3}, ["8 new blocks in groups of 3", "blocks=6 or 9"]),
    ({"blocks": 2, "per_group": 3}, ["2 is not a multiple of 3", "blocks=3,"]),
    (
        {"blocks": 33},
        ["33 new blocks", "32 old blocks cannot be divided into 33 groups", "blocks=32 or fewer"],
    ),
    (
        {"blocks": 35, "per_group": 5},
        ["35 new blocks", "7 groups has 4 blocks", "per_group is 5", "blocks=30 or fewer"],
    ),
    ({"blocks": 40, "per_group": 40}, ["1 groups has 32 blocks", "per_group is 40", "a smaller per_group"]),
    ({"placement": "suffx"}, ["'suffx'", "did you mean 'suffix'"]),
    ({"placement": "explicit"}, ["'explicit'", "interleaved, prefix, suffix"]),
    ({"placement": "prefix", "blocks": 33}, ["33 new blocks", "32 blocks to copy", "blocks=32 or fewer"]),
    ({"placement": "suffix", "per_group": 2}, ["per_group 2 with placement 'suffix'"]),
    ({"placement": "suffix", "blocks": None, "after": (1,)}, ["placement 'suffix' with per_group 1 and a list"]),
    ({"blocks": None, "after": (1,), "per_group": 2}, ["with per_group 2 and a list"]),
    ({"blocks": None, "after": ()}, ["after is ()"]),
    ({"blocks": None, "after": "3,7"}, ["after is '3,7'"]),
    ({"blocks": None, "after": (3, 32)}, ["no block 32", "0 to 31", "-1"]),
    ({"blocks": None, "after": (-2,)}, ["no block -2"]),
    ({"blocks": None, "after": ("3",)}, ["no block '3'"]),
    ({"blocks": None, "after": (True,)}, ["no block True"]),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[str(change) for change, _ in WRONG])
def test_what_cannot_be_placed_is_refused_with_numbers_that_can(change: dict[str, Any], words: list[str]):
    request: dict[str, Any] = {
        "blocks": 8,
        "placement": "interleaved",
        "after": None,
        "per_group": 1,
    } | change
    with pytest.raises(PlanError) as raised:
        place(32, **request)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)
