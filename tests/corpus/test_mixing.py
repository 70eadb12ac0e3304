"""Mixtures: epochs and shares of the recipe come out to 0.1 %, spread evenly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.mixing import Weight, choose, in_order, interleaved, wanted_tokens
from blockexpand.errors import CorpusError


def documents(lengths: list[int]) -> np.ndarray:
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, lengths, np.array(lengths) * 4], axis=1).astype(np.int64)


def drawn(count: int, seed: int, mean: float = 400) -> np.ndarray:
    return documents(np.random.default_rng(seed).gamma(0.7, mean, count).astype(int).clip(2).tolist())


def weight(num_tokens: int, epochs: float | None = None, share: float | None = None) -> Weight:
    return Weight(title=f"source of {num_tokens}", epochs=epochs, share=share, num_tokens=num_tokens)


def test_table_6_comes_out_to_a_thousandth() -> None:
    """One epoch of mathematics and one and a half of code, as in the paper's table 6."""
    math, code = drawn(30_000, 1), drawn(12_000, 2)
    own = [int(d[:, 1].sum()) for d in (math, code)]
    wanted = wanted_tokens([weight(own[0], 1.0), weight(own[1], 1.5)], None, 4.0)
    assert wanted == [own[0], 1.5 * own[1]]
    chosen = [choose(d, w) for d, w in zip((math, code), wanted, strict=True)]
    for one, tokens in zip(chosen, wanted, strict=True):
        assert abs(one.num_tokens - tokens) <= 1e-3 * tokens
    got = [one.num_tokens / sum(c.num_tokens for c in chosen) for one in chosen]
    assert abs(got[0] - wanted[0] / sum(wanted)) < 1e-3


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1.0, 2.5, 3.999])
def test_epochs_of_a_source(epochs: float) -> None:
    found = drawn(5000, 3)
    own = int(found[:, 1].sum())
    chosen = choose(found, epochs * own)
    taken = list(in_order(chosen, found))
    assert abs(chosen.num_tokens / own - epochs) < 1e-3 * epochs
    assert len(taken) == chosen.num_documents
    assert sum(length for _, length in taken) == chosen.num_tokens
    assert chosen.num_bytes == 4 * chosen.num_tokens
    counts = np.unique([first for first, _ in taken], return_counts=True)[1]
    assert set(counts) <= {int(epochs), int(epochs) + 1}


def test_a_part_of_an_epoch_is_taken_from_everywhere() -> None:
    found = drawn(5000, 4)
    taken = np.array([first for first, _ in in_order(choose(found, 0.2 * found[:, 1].sum()), found)])
    quarters = np.histogram(taken, bins=4, range=(0, int(found[:, 1].sum())))[0]
    assert quarters.min() > 0.8 * quarters.mean()


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), wanted=st.integers(0, 4000))
def test_what_is_off_is_less_than_the_shortest_document_left_out(lengths: list[int], wanted: int) -> None:
    found = documents(lengths)
    chosen = choose(found, wanted)
    off = wanted - chosen.num_tokens
    rest = set(range(len(lengths))) - {int(np.searchsorted(found[:, 0], f)) for f, _ in _last_epoch(chosen, found)}
    assert 0 <= off < max([lengths[n] for n in rest], default=1) or off == 0
    assert sum(length for _, length in in_order(chosen, found)) == chosen.num_tokens


def _last_epoch(chosen, found):  # type: ignore[no-untyped-def]
    return list(in_order(chosen, found))[chosen.num_epochs * len(found) :]


def test_shares_of_the_final_tokens() -> None:
    assert wanted_tokens([weight(900, share=0.75), weight(500, share=0.25)], None, 4.0) == [900, 300]
    assert wanted_tokens([weight(900, share=0.75), weight(500, share=0.25)], 2000, 4.0) == [1500, 500]
    assert wanted_tokens([weight(900, epochs=1.0), weight(500, share=0.25)], None, 4.0) == [900, 300]
    assert wanted_tokens([weight(900, epochs=2.0), weight(500, share=0.1)], 1000, 4.0) == [900, 100]
    with pytest.raises(CorpusError, match=r"source of 10 has 10 tokens, and its share of 0.5 is 900: 90.0 epochs"):
        wanted_tokens([weight(900, epochs=1.0), weight(10, share=0.5)], None, 4.0)
    with pytest.raises(CorpusError, match=r"source of 0 has 0 tokens, and its share of 0.5"):
        wanted_tokens([weight(900, epochs=1.0), weight(0, share=0.5)], None, 4.0)


def test_sources_are_spread_evenly_and_every_document_comes() -> None:
    one, other = drawn(2000, 5), drawn(500, 6)
    streams = [(choose(d, d[:, 1].sum()), d) for d in (one, other)]
    order = list(interleaved(streams))
    assert order == list(interleaved(streams))
    assert sorted((f, n) for s, f, n in order if s == 0) == [(int(f), int(n)) for f, n, _ in one]
    assert len(order) == 2500
    given = np.zeros(2)
    totals = np.array([float(d[:, 1].sum()) for d in (one, other)])
    longest = max(int(d[:, 1].max()) for d in (one, other))
    for source, _, length in order:
        given[source] += length
        assert abs(given[0] / totals[0] - given[1] / totals[1]) <= 2 * longest / totals.min()
