"""Which documents quote an evaluation text: a run of thirteen words in common is enough.

In: the evaluation texts, then the words of each document. Out: the words in common and whose they are, or None.
Words are compared without case, spacing and punctuation. Refused: evaluation texts that are all too short.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from blockexpand.corpus.documents import words_of
from blockexpand.corpus.fingerprints import WordHashes, gram_hashes
from blockexpand.corpus.reading import documents
from blockexpand.corpus.recipe import DecontaminateRecipe
from blockexpand.errors import CorpusError

# G = runs of words.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationTexts:
    """The runs of words that must not be in the corpus."""

    grams: dict[int, tuple[np.ndarray, np.ndarray]]
    """By length in words: hashes in rising order, uint64 [G], and the number of the text each is of, int32 [G]."""
    names: tuple[str, ...]
    """Of the texts."""
    num_skipped: int
    """Texts that are too short to say anything."""

    def quote(self, words: Sequence[str], words_W: np.ndarray) -> str | None:
        """The first run that a document has in common with a text, and the text's name."""
        for size, (hashes_G, owners_G) in self.grams.items():
            if len(words) < size:
                continue
            found_G = gram_hashes(words_W, size)
            places_G = np.minimum(np.searchsorted(hashes_G, found_G), len(hashes_G) - 1)
            hits = np.flatnonzero(hashes_G[places_G] == found_G)
            if len(hits):
                at = int(hits[0])
                owner = self.names[int(owners_G[places_G[at]])]
                return f"{' '.join(words[at : at + size])!r} is in {owner}"
        return None


def evaluation_texts(recipe: DecontaminateRecipe) -> EvaluationTexts:
    """Read the evaluation texts.

    Raises:
        CorpusError: they cannot be read, or none is long enough.
    """
    memo = WordHashes()
    names: list[str] = []
    found: dict[int, list[tuple[np.ndarray, int]]] = {}
    num_skipped = 0
    for source in recipe.against:
        for document in documents(source):
            words = words_of(document.text)
            if len(words) < recipe.least_words:
                num_skipped += 1
                continue
            size = min(len(words), recipe.gram_words)
            found.setdefault(size, []).append((gram_hashes(memo.of(words), size), len(names)))
            names.append(document.name)
    if not names:
        raise CorpusError(
            f"decontaminate: none of the {num_skipped} evaluation texts has {recipe.least_words} words; give longer "
            "ones, or lower least_words"
        )
    grams = {size: _index(found[size]) for size in sorted(found, reverse=True)}
    return EvaluationTexts(grams=grams, names=tuple(names), num_skipped=num_skipped)


def _index(found: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    hashes = np.concatenate([grams for grams, _ in found])
    owners = np.concatenate([np.full(len(grams), owner, dtype=np.int32) for grams, owner in found])
    hashes_G, first = np.unique(hashes, return_index=True)
    return hashes_G, owners[first]
