"""Rows over processes: each once, evenly in number and then in attention."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blockexpand.training.data import attention_cost, deal

COSTS = st.lists(st.integers(1, 1000), max_size=30)


@settings(max_examples=200, deadline=None)
@given(general=COSTS, domain=COSTS, size=st.integers(1, 9))
def test_every_row_goes_to_one_process_and_numbers_are_even(general: list[int], domain: list[int], size: int) -> None:
    hands = deal(general, domain, size)
    assert len(hands) == size
    assert sorted(row for of_general, _ in hands for row in of_general) == list(range(len(general)))
    assert sorted(row for _, of_domain in hands for row in of_domain) == list(range(len(domain)))
    for counts in ([len(g) for g, _ in hands], [len(g) + len(d) for g, d in hands]):
        assert max(counts) - min(counts) <= 1
    assert hands == deal(general, domain, size)


def test_the_costliest_rows_are_kept_apart() -> None:
    costs = [attention_cost(lengths) for lengths in ([8], [1] * 8, [8], [2] * 4, [4, 4], [1] * 8)]
    assert costs == [64, 8, 64, 16, 32, 8]
    loads = [sum(costs[row] for row in rows) for _, rows in deal([], costs, 2)]
    assert loads == [64 + 32 + 8, 64 + 16 + 8]  # in the order they come it would be 136 and 56
