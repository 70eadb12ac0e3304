"""The rows of one step over the processes of a run: each to one, none twice, none left out.

In: what each row costs in attention, and how many processes there are. Out: the rows of each. It is a pure
function, so every process knows what the others have without asking. All rows have the same number of
tokens; they differ in attention, which for a row is the sum of its documents' squared lengths.
"""

from __future__ import annotations

from collections.abc import Sequence


def attention_cost(lengths: Sequence[int]) -> int:
    """What a row's attention costs, in pairs of tokens (the causal half's factor left out)."""
    return sum(length * length for length in lengths)


def deal(general: Sequence[int], domain: Sequence[int], size: int) -> list[tuple[list[int], list[int]]]:
    """Which general and which domain rows each of `size` processes takes.

    Args:
        general: The attention cost of each general row of the step.
        domain: The same of each domain row.
        size: How many processes there are.

    Returns:
        For each process the indices of its general and its domain rows, rising. Numbers of rows differ by
        at most one, first of the general rows (which may need a second pass for the base's answer), then
        of all; within that the costliest row left goes to the process with the least cost so far.
    """
    loads, held = [0] * size, [0] * size
    mine_general = _dealt(general, len(general), held, loads)
    mine_domain = _dealt(domain, len(general) + len(domain), held, loads)
    assert sum(held) == len(general) + len(domain), f"{held} rows dealt of {len(general)} and {len(domain)}"
    return list(zip(mine_general, mine_domain, strict=True))


def _dealt(costs: Sequence[int], num_rows: int, held: list[int], loads: list[int]) -> list[list[int]]:
    """Longest processing time first (Graham 1969) until `num_rows` are held, evenly; adds to `held` and `loads`."""
    size = len(held)
    least, num_longer = divmod(num_rows, size)
    hands: list[list[int]] = [[] for _ in range(size)]
    for row in sorted(range(len(costs)), key=lambda row: (-costs[row], row)):
        longer_left = sum(count > least for count in held) < num_longer
        free = (rank for rank in range(size) if held[rank] < least + longer_left)
        chosen = min(free, key=lambda rank: (loads[rank], rank))
        hands[chosen].append(row)
        held[chosen] += 1
        loads[chosen] += costs[row]
    return [sorted(hand) for hand in hands]
