"""Which documents were there before, exactly or nearly, and which quote an evaluation text.

In: texts. Out: numbers that are the same on every machine and in every run, and verdicts. Copies are compared on what a
text is: case, signs, indentation and combining marks count; line ends, trailing spaces and the Unicode form do not. An
evaluation text is found, and a split chosen, by words alone. Near copies are `datasketch`'s MinHash and LSH.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from blockexpand.errors import CorpusError

# W = words of a text, G = runs of words (grams).

NUM_HASHES = 112
"""As Penedo et al. 2024 (FineWeb, arXiv 2406.17557, section 3.4)."""
_SCHEME: Literal["affine32"] = "affine32"
"""Of datasketch's hash functions: its default, said because it must be when signatures are read back."""
_SPLIT_WORDS = 5
_RUN_WORDS = 5
"""Of near copies, as there."""
_GRAM_WORDS, _LEAST_WORDS = 13, 8
"""A run of so many words is a quotation, and a shorter text is a run of its own length; texts below the least say
nothing (Brown et al. 2020, GPT-3, arXiv 2005.14165, appendix C)."""
_WORD = re.compile(r"\w+")
_SIGN = re.compile(r"^[ \t]+|\w+|[^\w\s]", re.MULTILINE)
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of splitmix64 (Steele, Lea and Flood 2014), as the step is."""


@functools.lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    """64 bits for a word, remembered because texts repeat their words."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def words_of(text: str) -> list[str]:
    """The words by which splits are chosen and quotations found: lower case, without spacing and punctuation."""
    return _WORD.findall(text.lower())


def mixed(values: np.ndarray) -> np.ndarray:
    """Numbers that look drawn at random, one for each number; uint64, any shape."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * _MIXERS[0]
        values = (values ^ (values >> np.uint64(27))) * _MIXERS[1]
        return values ^ (values >> np.uint64(31))


def gram_hashes(words: Sequence[str], size: int) -> np.ndarray:
    """A hash for every run of `size` words, uint64 [G]; a shorter text is one run."""
    words_W = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    size = min(size, len(words))
    if size == 0:
        return np.zeros(1, dtype=np.uint64)
    sums_G = np.zeros(len(words) - size + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for place in range(size):
            sums_G = sums_G * _STEP + words_W[place : place + len(sums_G)]
        return mixed(sums_G + np.uint64(size))


def position_of(text: str) -> float:
    """Where on [0, 1) a document falls, by which its split is chosen: a hash of its smallest run of five words.

    Near copies (one sentence in fifty files, tables that differ in a letter) mostly fall together. A text without words
    goes by all of itself.
    """
    words = words_of(text) or [text]
    # Hashed once more: a minimum lies close to 0, and shares are taken from a uniform number.
    smallest = gram_hashes(words, _SPLIT_WORDS).min(keepdims=True)
    return float(mixed(smallest + _STEP)[0] >> np.uint64(11)) / 2**53


def content_key(text: str) -> int:
    """64 bits that texts with the same content share.

    Among 100 million documents the odds that any two others do by chance are 3 in 10,000.
    """
    text = _TRAILING.sub("", unicodedata.normalize("NFC", text.replace("\r\n", "\n"))).strip("\n")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Seen:
    """The documents seen so far: about 75 bytes of memory each, 3 KB where near copies are looked for."""

    def __init__(self, near: float | None = None) -> None:
        """Nothing was seen yet; from the similarity `near` on, a text is a near copy."""
        self._near = near
        self._keys: set[int] = set()
        self._index: Any = None
        if self._near is not None:
            from datasketch import MinHashLSH

            self._index = MinHashLSH(threshold=self._near, num_perm=NUM_HASHES, weights=(0.1, 0.9))  # miss few

    def signature(self, text: str) -> np.ndarray:
        """What near copies share most of: the smallest of each of 112 hashes of the text's runs, uint64 [112]."""
        from datasketch import MinHash

        low_G = gram_hashes(_SIGN.findall(text), _RUN_WORDS) >> np.uint64(32)
        found = MinHash(num_perm=NUM_HASHES, hashfunc=int, scheme=_SCHEME)
        found.update_batch(low_G.tolist())
        return found.hashvalues

    def verdict(self, text: str, key: int) -> tuple[str, np.ndarray | None]:
        """`duplicate`, `near_duplicate`, or nothing and the document is remembered; and its signature."""
        if key in self._keys:
            return "duplicate", None
        if self._index is None:
            self._keys.add(key)
            return "", None
        found = self.signature(text)
        if self._is_near(found):
            return "near_duplicate", found
        self.remember(key, found)
        return "", found

    def _is_near(self, signature: np.ndarray) -> bool:
        others = self._index.query(self._minhash(signature))
        return any((np.frombuffer(other[8:], np.uint64) == signature).mean() >= self._near for other in others)

    @staticmethod
    def _minhash(signature: np.ndarray) -> Any:
        from datasketch import MinHash

        return MinHash(num_perm=NUM_HASHES, hashvalues=signature, scheme=_SCHEME)

    def remember(self, key: int, signature: np.ndarray | None) -> None:
        """Count a document as seen."""
        self._keys.add(key)
        if self._index is not None and signature is not None:
            name = key.to_bytes(8, "big") + signature.astype(np.uint64).tobytes()
            self._index.insert(name, self._minhash(signature), check_duplication=False)


class EvaluationTexts:
    """The runs of words that must not be in the corpus."""

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        """Index (name, text) pairs.

        Raises:
            CorpusError: none is long enough.
        """
        self.names: list[str] = []
        self.num_skipped = 0
        found: dict[int, dict[int, int]] = {}
        for name, text in texts:
            words = words_of(text)
            if len(words) < _LEAST_WORDS:
                self.num_skipped += 1
                continue
            size = min(len(words), _GRAM_WORDS)
            found.setdefault(size, {}).update(dict.fromkeys(gram_hashes(words, size).tolist(), len(self.names)))
            self.names.append(name)
        if not self.names:
            raise CorpusError(
                f"decontaminate: none of the {self.num_skipped} evaluation texts has {_LEAST_WORDS} words; give "
                "longer ones"
            )
        self._owners = {size: found[size] for size in sorted(found, reverse=True)}
        self._hashes = {size: np.fromiter(owners, dtype=np.uint64) for size, owners in self._owners.items()}

    def quote(self, text: str) -> str | None:
        """The first run that a document has in common with a text, and the text's name."""
        words = words_of(text)
        for size, hashes_G in self._hashes.items():
            if len(words) >= size:
                grams_G = gram_hashes(words, size)
                hits = np.flatnonzero(np.isin(grams_G, hashes_G))
                if len(hits):
                    at = int(hits[0])
                    owner = self.names[self._owners[size][int(grams_G[at])]]
                    return f"{' '.join(words[at : at + size])!r} is in {owner}"
        return None
