"""Splits: enough for each on 5 documents as on thousands, near copies together, few texts cut with a gap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.copies import position_of
from blockexpand.corpus.recipe import SplitRecipe
from blockexpand.corpus.splits import GAP_TOKENS, can_be_cut, spans_of, split_documents
from blockexpand.errors import CorpusError

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
