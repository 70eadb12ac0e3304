"""Mixtures: epochs and shares of the recipe come out to the token, spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.mixture import Weight, interleave, take, wanted_tokens
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
