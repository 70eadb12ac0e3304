"""Copies and near copies: found, within a stated memory, the same after a kill."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand.corpus.documents import content_key, words_of
from blockexpand.corpus.duplicates import Seen, Table
from blockexpand.corpus.fingerprints import (
    NUM_HASHES,
    WordHashes,
    band_keys,
    banding_for,
    gram_hashes,
    signature,
)
from blockexpand.corpus.recipe import DuplicatesRecipe
from blockexpand.errors import CorpusError, RecordError

GRAMS = [10108584955347784849, 1349509319449939823]
SIGNATURE = [1011750292, 1769611, 78676506]

WORDS = [f"word{n}" for n in range(3000)]


def text_of(r: random.Random, count: int = 120) -> list[str]:
    return [r.choice(WORDS) for _ in range(count)]


def changed(r: random.Random, words: list[str], num_changes: int) -> list[str]:
    copy = list(words)
    for at in r.sample(range(len(copy)), num_changes):
        copy[at] = r.choice(WORDS)
    return copy


def jaccard(a: list[str], b: list[str], size: int = 5) -> float:
    one, other = ({tuple(w[i : i + size]) for i in range(len(w) - size + 1)} for w in (a, b))
    return len(one & other) / len(one | other)


class Index:
    """A `Seen` that is asked with words."""

    def __init__(self, folder: Path, **settings: object) -> None:
        folder.mkdir(exist_ok=True)
        self.recipe = DuplicatesRecipe(**settings)  # type: ignore[arg-type]
        self.banding = banding_for(self.recipe.near) if self.recipe.near else None
        self.seen = Seen(self.recipe, self.banding[0] if self.banding else 0, folder)
        self.hashes = WordHashes()

    def verdict(self, words: list[str]) -> str | None:
        found = signature(gram_hashes(self.hashes.of(words), self.recipe.run_words))
        bands = band_keys(found, self.banding) if self.banding else None
        return self.seen.verdict(content_key(" ".join(words)), bands, found if self.banding else None)


@given(st.lists(st.integers(1, 2**64 - 1), unique=True, max_size=300))
def test_a_table_holds_what_was_put_in_and_nothing_else(entries: list[int]) -> None:
    table = Table(1 << 20)
    for entry in entries:
        assert not table.holds(entry)
        table.add(entry)
        assert table.holds(entry)
        assert entry & 0xFFFFFFFF in table.with_upper(entry >> 32)
    assert table.num_entries == len(entries)


def test_a_table_grows_and_keeps_its_entries() -> None:
    table = Table(1 << 20)
    entries = [n * 0x9E3779B97F4A7C15 & (2**64 - 1) for n in range(1, 20_000)]
    for entry in entries:
        table.add(entry)
    assert all(map(table.holds, entries))
    assert not table.holds(12345)


def test_signatures_estimate_the_similarity() -> None:
    r = random.Random(1)
    hashes = WordHashes()
    errors = []
    for num_changes in (1, 3, 8, 20):
        for _ in range(10):
            one = text_of(r, 300)
            other = changed(r, one, num_changes)
            a, b = (signature(gram_hashes(hashes.of(words), 5)) for words in (one, other))
            errors.append(float((a == b).mean()) - jaccard(one, other))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 2 * 0.5 / NUM_HASHES**0.5


def test_planted_near_copies_are_found_and_others_kept(tmp_path: Path) -> None:
    """Jaccard at least 0.9: all but a few found; below 0.6: none dropped; the threshold is 0.8."""
    r = random.Random(2)
    index = Index(tmp_path / "seen", near=0.8)
    originals = [text_of(r) for _ in range(200)]
    assert [index.verdict(words) for words in originals] == [None] * 200
    near = [changed(r, words, 1) for words in originals]
    near = [n for n, o in zip(near, originals, strict=True) if jaccard(n, o) >= 0.9]
    found = [index.verdict(words) for words in near]
    assert len(near) > 150
    assert found.count("near_duplicate") >= 0.97 * len(near)
    far = [changed(r, words, 15) for words in originals]
    assert max(jaccard(f, o) for f, o in zip(far, originals, strict=True)) < 0.6
    assert [index.verdict(words) for words in far] == [None] * 200
    assert index.verdict(originals[0]) == "duplicate"


def test_what_was_seen_is_known_after_a_kill(tmp_path: Path) -> None:
    r = random.Random(3)
    texts = [text_of(r) for _ in range(30)]
    first = Index(tmp_path / "seen", near=0.8)
    for words in texts:
        assert first.verdict(words) is None
    sizes = first.seen.sizes()
    assert sizes == {"keys": 30 * 8, "bands": 30 * 4 * 14, "signatures": 30 * 2 * NUM_HASHES}
    first.seen.close()
    again = Index(tmp_path / "seen", near=0.8)
    assert [again.verdict(words) for words in texts] == ["duplicate"] * 30
    assert again.verdict(changed(r, texts[4], 1)) == "near_duplicate"
    assert again.seen.sizes() == sizes


def test_the_memory_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockexpand.corpus.duplicates._FIRST_SLOTS", 16)
    index = Index(tmp_path / "seen", memory_mb=1)
    index.seen._keys._most_slots = 64
    with pytest.raises(CorpusError, match=r"is full: 52 are in it, and duplicates.memory_mb is 1; raise it"):
        for number in range(100):
            index.verdict([f"w{number}"])


def test_bandings_find_pairs_at_the_threshold() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        bands, size = banding_for(threshold)
        assert bands * size == NUM_HASHES
        assert 1 - (1 - threshold**size) ** bands >= 0.9
    assert banding_for(0.8) == (14, 8)
    with pytest.raises(RecordError, match="near: expected a similarity from 0.3 to 1, got 0.1"):
        DuplicatesRecipe(near=0.1)


def test_fingerprints_are_what_they_were() -> None:
    """Known values: a change would make a resumed corpus another one."""
    words = words_of("The quick brown fox jumps over the lazy dog")
    grams = gram_hashes(WordHashes().of(words), 5)
    assert [int(x) for x in grams[:2]] == GRAMS
    assert [int(x) for x in signature(grams)[:3]] == SIGNATURE
    assert len(gram_hashes(WordHashes().of(words[:2]), 5)) == 1
    assert gram_hashes(WordHashes().of([]), 5).tolist() == [0]


def test_a_memo_of_words_is_emptied_and_hashes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WordHashes().of(WORDS[:50])
    monkeypatch.setattr("blockexpand.corpus.fingerprints._MOST_WORDS_KEPT", 7)
    small = WordHashes()
    assert np.array_equal(small.of(WORDS[:50]), whole)
    assert len(small) <= 7
