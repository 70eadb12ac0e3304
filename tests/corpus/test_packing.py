"""Packing: every token once, borders kept, rows nearly full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.packing import Piece, best_fit, pack, pieces_of

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


def pieces(lengths: list[int], row_tokens: int) -> list[Piece]:
    return [p for n, length in enumerate(lengths) for p in pieces_of(n, 0, 1000 * n, length, row_tokens)]


@given(num_tokens=st.integers(1, 500), row_tokens=st.integers(2, 64))
def test_every_token_but_the_first_is_predicted_exactly_once(num_tokens: int, row_tokens: int) -> None:
    found = pieces_of(0, 0, 7, num_tokens, row_tokens)
    predicted = [t - 7 for p in found for t in range(p.first + 1, p.first + p.length)]
    assert predicted == list(range(1, num_tokens))
    assert all(1 <= p.length <= row_tokens for p in found)


@given(lengths=LENGTHS, row_tokens=st.integers(8, 64), window=st.integers(1, 200))
def test_rows_hold_every_piece_once_and_none_overflows(lengths: list[int], row_tokens: int, window: int) -> None:
    every = pieces(lengths, row_tokens)
    rows = best_fit(every, row_tokens)
    # Best fit opens a row only when no other has room: at most one row is not more than half full.
    assert sum(sum(p.length for p in row) <= row_tokens // 2 for row in rows) <= 1
    for found in (rows, list(pack(every, row_tokens, window))):
        assert sorted(p for row in found for p in row) == sorted(every)
        assert all(sum(p.length for p in row) <= row_tokens for row in found)
    assert list(pack(every, row_tokens)) == rows


def test_a_piece_goes_where_it_fits_best_and_text_fills_rows() -> None:
    rows = best_fit(pieces([7, 6, 3, 4], 10), 10)
    assert [[p.length for p in row] for row in rows] == [[7, 3], [6, 4]]
    many = pieces([5 + (n * 37) % 90 for n in range(500)], 256)
    assert len(many) == 500
    packed = best_fit(many, 256)
    assert sum(p.length for p in many) > 0.99 * 256 * len(packed)
    assert best_fit([], 16) == list(pack([], 16)) == []
