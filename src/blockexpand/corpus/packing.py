"""Pieces of documents into rows of equal length, best fit, without splitting what fits.

A document longer than a row is cut into pieces that overlap by one token, so that every token but a
document's first is predicted exactly once. Pieces are then placed, longest first, each into the fullest
row that still has room. Borders are kept: no token is ever predicted from another document. A corpus is packed
window by window, so that the memory needed does not grow with it; rows that a window leaves emptiest are broken
up again and go into the next one.

Shapes: a row has T tokens; a document of n tokens gives ceil((n - 1) / (T - 1)) pieces (one if n = 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_WINDOW_PIECES = 1 << 17
"""Pieces looked at together: about 30 MB of them."""
_CARRIED_ROWS = 8
"""One row of so many at most is broken up for the next window: what never fits well must be written one day."""
_CARRIED_ROOM = 0.005
"""A row with less room than this share of it stays."""


class Piece(NamedTuple):
    """A run of tokens of one document."""

    document: int
    """The document's number in its split, from 0."""
    source: int
    first: int
    """Its first token among all of that source's."""
    length: int


def pieces_of(document: int, source: int, first: int, num_tokens: int, row_tokens: int) -> list[Piece]:
    """The pieces of one document of `num_tokens`, for rows of `row_tokens`."""
    if num_tokens <= row_tokens:
        return [Piece(document, source, first, num_tokens)]
    starts = range(0, num_tokens - 1, row_tokens - 1)
    return [Piece(document, source, first + s, min(row_tokens, num_tokens - s)) for s in starts]


def best_fit(pieces: Sequence[Piece], row_tokens: int) -> list[list[Piece]]:
    """Rows of pieces, each row's lengths summing to at most `row_tokens`.

    Decreasing best fit: wastes at most 2/9 of the optimum's rows in the worst case (Johnson 1973) and
    well under 1 % on text. The same pieces in the same order give the same rows.
    """
    rows: list[list[Piece]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(row_tokens + 1)]
    rooms = 0  # bit r is set when some row has exactly r tokens of room
    for piece in sorted(pieces, key=lambda p: -p.length):
        fitting = rooms >> piece.length
        if fitting:
            room = piece.length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = row_tokens, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = room - piece.length
        rows_with_room[left].append(row)
        rooms |= 1 << left
    return rows


def pack(pieces: Iterable[Piece], row_tokens: int, window_pieces: int = _WINDOW_PIECES) -> Iterator[list[Piece]]:
    """Rows of any number of pieces, window by window; one window alone gives what `best_fit` gives."""
    window: list[Piece] = []
    for piece in pieces:
        if len(window) >= window_pieces:
            rows = best_fit(window, row_tokens)
            rooms = [row_tokens - sum(piece.length for piece in row) for row in rows]
            emptiest = sorted(range(len(rows)), key=lambda n: (-rooms[n], n))[: len(rows) // _CARRIED_ROWS]
            carried = {n for n in emptiest if rooms[n] > _CARRIED_ROOM * row_tokens}
            yield from (row for n, row in enumerate(rows) if n not in carried)
            window = [piece for n in sorted(carried) for piece in rows[n]]
        window.append(piece)
    yield from best_fit(window, row_tokens)
