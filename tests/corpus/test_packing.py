"""Packing: every token once, borders kept, rows nearly full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.packing import best_fit, fill, pieces_of

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(num_tokens=st.integers(1, 500), row_tokens=st.integers(2, 64))
def test_every_token_but_the_first_is_predicted_exactly_once(num_tokens: int, row_tokens: int) -> None:
    pieces = pieces_of(0, num_tokens, row_tokens)
    predicted = [t for p in pieces for t in range(p.start + 1, p.start + p.length)]
    assert predicted == list(range(1, num_tokens))
    assert all(1 <= p.length <= row_tokens for p in pieces)


@given(lengths=LENGTHS, row_tokens=st.integers(8, 64))
def test_rows_hold_every_piece_once_and_no_row_overflows(lengths: list[int], row_tokens: int) -> None:
    pieces = [p for n, length in enumerate(lengths) for p in pieces_of(n, length, row_tokens)]
    rows = best_fit(pieces, row_tokens)
    key = lambda p: (p.document, p.start)  # noqa: E731
    assert sorted((p for row in rows for p in row), key=key) == sorted(pieces, key=key)
    assert all(sum(p.length for p in row) <= row_tokens for row in rows)
    # Best fit opens a row only when no other has room: at most one row is not more than half full.
    assert sum(sum(p.length for p in row) <= row_tokens // 2 for row in rows) <= 1
    assert rows == best_fit(pieces, row_tokens)


def test_a_piece_goes_where_it_fits_best() -> None:
    pieces = [p for n, length in enumerate([7, 6, 3, 4]) for p in pieces_of(n, length, 10)]
    rows = best_fit(pieces, 10)
    assert [[p.length for p in row] for row in rows] == [[7, 3], [6, 4]]
    assert fill(rows, 10) == 1.0


def test_documents_that_fit_are_not_cut_and_text_fills_rows() -> None:
    pieces = [p for n in range(500) for p in pieces_of(n, 5 + (n * 37) % 90, 256)]
    assert len(pieces) == 500
    assert fill(best_fit(pieces, 256), 256) > 0.99


def test_nothing_fills_nothing() -> None:
    assert best_fit([], 16) == []
    assert fill([], 16) == 0.0
