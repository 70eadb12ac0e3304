"""Mixtures come out to the token, rows are packed nearly full with every token once, splits have enough each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.copies import position_of
from blockexpand.corpus.mixture import Weight, interleave, take, wanted_tokens
from blockexpand.corpus.packing import Piece, best_fit, pack, pieces_of
from blockexpand.corpus.recipe import SplitRecipe
from blockexpand.corpus.splits import GAP_TOKENS, can_be_cut, spans_of, split_documents
from blockexpand.errors import CorpusError


def runs(lengths: list[int]) -> np.ndarray:
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, lengths], axis=1).astype(np.int64)


def weight(num_tokens: int, epochs: float | None = None, share: float | None = None) -> Weight:
    return Weight(title=f"source of {num_tokens}", epochs=epochs, share=share, num_tokens=num_tokens)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), epochs=st.floats(0, 4))
def test_a_source_gives_exactly_what_is_wanted(lengths: list[int], epochs: float) -> None:
    wanted = round(epochs * sum(lengths))
    found = list(take(runs(lengths), wanted))
    assert sum(length for _, _, length in found) == wanted
    whole = wanted // sum(lengths)
    counts = np.bincount([document for document, _, _ in found], minlength=len(lengths))
    assert set(counts) <= {whole, whole + 1}
    cut = [n for n, (document, _, length) in enumerate(found) if length < lengths[document]]
    assert cut in ([], [len(found) - 1])


def test_a_part_of_an_epoch_is_taken_from_everywhere() -> None:
    found = runs(np.random.default_rng(4).gamma(0.7, 400, 5000).astype(int).clip(2).tolist())
    taken = [document for document, _, _ in take(found, int(0.2 * found[:, 1].sum()))]
    quarters = np.histogram(taken, bins=4, range=(0, 5000))[0]
    assert quarters.min() > 0.8 * quarters.mean()


def test_shares_of_the_final_tokens() -> None:
    assert wanted_tokens([weight(900, share=0.75), weight(500, share=0.25)], None) == [900, 300]
    assert wanted_tokens([weight(900, share=0.75), weight(500, share=0.25)], 2000) == [1500, 500]
    assert wanted_tokens([weight(900, epochs=1.0), weight(500, share=0.25)], None) == [900, 300]
    assert wanted_tokens([weight(900, epochs=2.0), weight(500, share=0.1)], 1000) == [900, 100]
    assert wanted_tokens([weight(12844, epochs=1.0)], 4000) == [4000]
    for few in (10, 0):
        with pytest.raises(CorpusError, match=f"source of {few} has {few} tokens"):
            wanted_tokens([weight(900, epochs=1.0), weight(few, share=0.5)], None)


def test_sources_are_spread_evenly_and_every_document_comes() -> None:
    r = np.random.default_rng(5)
    one, other = (runs(r.gamma(0.7, 400, count).astype(int).clip(2).tolist()) for count in (2000, 500))
    totals = [int(d[:, 1].sum()) for d in (one, other)]
    order = list(interleave([(one, totals[0]), (other, totals[1])]))
    assert len(order) == 2500
    assert sorted(first for source, _, first, _ in order if source == 0) == one[:, 0].tolist()
    given_tokens = [0, 0]
    longest = max(int(d[:, 1].max()) for d in (one, other))
    for source, _, _, length in order:
        given_tokens[source] += length
        assert abs(given_tokens[0] / totals[0] - given_tokens[1] / totals[1]) <= 2 * longest / min(totals)


# --- Packing: every token once, borders kept, rows nearly full ---


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


# --- Splits: enough for each on 5 documents as on thousands, near copies together, few texts cut with a gap ---


SPLITS = {"train": SplitRecipe(share=0.96), "validation": SplitRecipe(share=0.02), "test": SplitRecipe(share=0.02)}


@given(count=st.integers(5, 2000), seed=st.integers(0, 2**32 - 1))
def test_no_split_is_left_without_documents(count: int, seed: int) -> None:
    """301 documents ended in "the split 'test' is empty"."""
    positions = np.random.default_rng(seed).random(count)
    numbers = split_documents(positions, SPLITS)
    counts = np.bincount(numbers, minlength=3)
    least = min(8, max(1, count // 10))
    assert counts[1] >= least
    assert counts[2] >= least
    assert counts[0] >= 0.7 * count or count < 10
    # Splits are neighbours on the line, so a document that is added moves others over a border at most.
    assert sorted(numbers[np.argsort(positions)].tolist()) == numbers[np.argsort(positions)].tolist()


def test_many_documents_fall_by_their_shares_alone() -> None:
    positions = np.random.default_rng(0).random(20_000)
    numbers = split_documents(positions, SPLITS)
    assert np.array_equal(numbers, np.searchsorted([0.96, 0.98], positions, side="right"))


def test_near_copies_fall_together_and_too_few_are_refused() -> None:
    text = "the quick brown fox jumps over the lazy dog and runs into the deep dark wood at night"
    assert position_of(text) == position_of(text.upper()) == position_of(text + " again")
    positions = np.repeat([0.1, 0.5, 0.9], 10)
    numbers = split_documents(positions, SPLITS)
    assert [len(set(numbers[positions == p])) for p in (0.1, 0.5, 0.9)] == [1, 1, 1]
    assert sorted(set(numbers)) == [0, 1, 2]
    with pytest.raises(CorpusError, match="'validation' is empty|'train' is empty|'test' is empty"):
        split_documents(np.full(30, 0.5), SPLITS)
    with pytest.raises(CorpusError, match="4 documents"):
        split_documents(np.linspace(0, 0.9, 4), SPLITS)
    assert split_documents(np.zeros(1), {"train": SplitRecipe(share=1.0)}).tolist() == [0]


@given(st.integers(16 * GAP_TOKENS, 100_000))
def test_spans_of_a_text_lie_apart(num_tokens: int) -> None:
    spans = spans_of(num_tokens, SPLITS)
    assert [number for number, _, _ in spans] == [0, 1, 2]
    for (_, first, length), (_, after, _) in itertools.pairwise(spans):
        assert after - (first + length) >= GAP_TOKENS
    assert all(length > 0 for _, _, length in spans)
    assert spans[-1][1] + spans[-1][2] <= num_tokens
    assert spans[0][2] >= 0.7 * num_tokens


def test_only_a_few_long_texts_are_cut() -> None:
    long, short = np.full(10, 5000), np.full(10, 50)
    assert can_be_cut(long, SPLITS, chats=False)
    assert not can_be_cut(short, SPLITS, chats=False)
    assert not can_be_cut(long, SPLITS, chats=True)
    assert not can_be_cut(np.full(20, 5000), SPLITS, chats=False)
    assert not can_be_cut(np.full(4, 5000), SPLITS, chats=False)
    assert not can_be_cut(long, {"train": SplitRecipe(share=1.0)}, chats=False)
    assert spans_of(50, SPLITS) == [(0, 0, 50)]
