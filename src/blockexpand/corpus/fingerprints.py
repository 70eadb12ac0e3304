"""Numbers by which texts are compared: hashes of words, of runs of words, MinHash signatures.

In: words. Out: unsigned integers that are the same on every machine and in every run. Pure numpy: a quarter
of what tokenising costs, half of what datasketch takes, twice what rensa does (docs/log.md); and the same
hashes serve decontamination.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

# W = words of a text, G = runs of words (grams), H = hash functions, B = bands.

NUM_HASHES = 112
"""As Penedo et al. 2024 (FineWeb, arXiv 2406.17557, section 3.4)."""
_BANDINGS = ((8, 14), (14, 8), (16, 7), (28, 4), (56, 2))
"""Bands and hashes a band whose product is NUM_HASHES, from the strictest to the loosest."""
_LEAST_FOUND = 0.9
"""A pair at the threshold is found with this probability at least."""
_GRAMS_AT_ONCE = 4096
_MOST_WORDS_KEPT = 1 << 18
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of splitmix64 (Steele, Lea and Flood 2014)."""
_STEP = np.uint64(0x9E3779B97F4A7C15)


class WordHashes(dict[str, int]):
    """64 bits for each word, remembered because texts repeat their words."""

    def __missing__(self, word: str) -> int:
        """Hash a word that is new."""
        if len(self) >= _MOST_WORDS_KEPT:
            self.clear()
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        self[word] = value
        return value

    def of(self, words: Sequence[str]) -> np.ndarray:
        """The words' hashes, uint64 [W]."""
        return np.fromiter(map(self.__getitem__, words), dtype=np.uint64, count=len(words))


def mixed(values: np.ndarray) -> np.ndarray:
    """Numbers that look drawn at random, one for each number; uint64, any shape."""
    values = (values ^ (values >> np.uint64(30))) * _MIXERS[0]
    values = (values ^ (values >> np.uint64(27))) * _MIXERS[1]
    return values ^ (values >> np.uint64(31))


def gram_hashes(words_W: np.ndarray, size: int) -> np.ndarray:
    """A hash for every run of `size` words, uint64 [G]; a shorter text is one run."""
    size = min(size, len(words_W))
    if size == 0:
        return np.zeros(1, dtype=np.uint64)
    count = len(words_W) - size + 1
    sums_G = np.zeros(count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(size):
            sums_G = sums_G * _STEP + words_W[place : place + count]
        return mixed(sums_G + np.uint64(size))


def _functions() -> tuple[np.ndarray, np.ndarray]:
    state_H = np.arange(1, 2 * NUM_HASHES + 1, dtype=np.uint64) * _STEP
    drawn_H = mixed(state_H)
    return drawn_H[:NUM_HASHES] | np.uint64(1), drawn_H[NUM_HASHES:]


with np.errstate(over="ignore"):
    _FACTORS_H, _TERMS_H = _functions()


def signature(grams_G: np.ndarray) -> np.ndarray:
    """The MinHash signature of a set of runs: the smallest value of each of 112 hash functions, uint32 [H]."""
    smallest_H = np.full(NUM_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for start in range(0, len(grams_G), _GRAMS_AT_ONCE):
            part_G = grams_G[start : start + _GRAMS_AT_ONCE]
            values_HG = part_G[None, :] * _FACTORS_H[:, None] + _TERMS_H[:, None]
            np.minimum(smallest_H, values_HG.min(axis=1), out=smallest_H)
    return (smallest_H >> np.uint64(32)).astype(np.uint32)


def banding_for(threshold: float) -> tuple[int, int]:
    """Bands and hashes a band with which pairs at the threshold are found nine times of ten, or more."""
    for bands, size in _BANDINGS:
        if 1 - (1 - threshold**size) ** bands >= _LEAST_FOUND:
            return bands, size
    return _BANDINGS[-1]


def band_keys(signature_H: np.ndarray, banding: tuple[int, int]) -> np.ndarray:
    """One 32-bit key a band, different from band to band, uint32 [B]; never 0."""
    bands, size = banding
    parts_BS = signature_H.reshape(bands, size).astype(np.uint64)
    with np.errstate(over="ignore"):
        keys_B = np.arange(1, bands + 1, dtype=np.uint64)
        for place in range(size):
            keys_B = mixed(keys_B * _STEP + parts_BS[:, place])
    return np.maximum(keys_B >> np.uint64(32), np.uint64(1)).astype(np.uint32)
