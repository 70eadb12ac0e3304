"""Which document is of which split: by a hash of its words, with enough for each of 20 documents as of 20 million.

In: each document's place on [0, 1) and its tokens. Out: runs of tokens, each of one split. Documents of one place (near
copies) stay together. Where shares would leave a split too few, it takes the documents nearest to its border. Of
fewer than 20 texts, the long ones are cut: a span for each split, with a gap between them. Refused: fewer than five.

Shapes: D = documents.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from blockexpand.corpus.recipe import SplitRecipe
from blockexpand.errors import CorpusError

LEAST_DOCUMENTS = 5
ENOUGH_DOCUMENTS = 20
"""Of fewer, the long ones are cut."""
_WANTED_DOCUMENTS = 8
"""In every split but the first, as far as that is at most a tenth of all there are."""
_LARGEST_SHARE = 0.1
"""Of the documents, that a minimum may give to a split; of a text that is cut, a held-out span has at least this."""
GAP_TOKENS = 64
"""Between the spans of two splits, so that no sentence reaches over."""
_LEAST_CUT_TOKENS = 16 * GAP_TOKENS


def split_documents(positions_D: np.ndarray, splits: Mapping[str, SplitRecipe]) -> np.ndarray:
    """The number of each document's split, int64 [D].

    Raises:
        CorpusError: there are fewer than five documents for several splits, or a split stays empty.
    """
    num_documents = len(positions_D)
    if len(splits) == 1:
        return np.zeros(num_documents, dtype=np.int64)
    if num_documents < LEAST_DOCUMENTS:
        raise CorpusError(
            f"{num_documents} documents are left for {len(splits)} splits ({', '.join(splits)}); expected at least "
            f"{LEAST_DOCUMENTS}: give more text, or one split alone (--held-out 0)"
        )
    borders = np.cumsum([split.share for split in splits.values()])[:-1]
    numbers_D = np.searchsorted(borders, positions_D, side="right")
    counts = np.bincount(numbers_D, minlength=len(splits))
    most = max(1, int(_LARGEST_SHARE * num_documents))
    least = [1, *[min(_WANTED_DOCUMENTS, most)] * (len(splits) - 1)]
    if (counts < least).any():
        numbers_D = _by_rank(positions_D, [split.share for split in splits.values()], least)
        counts = np.bincount(numbers_D, minlength=len(splits))
    for name, count in zip(splits, counts, strict=True):
        if not count:
            raise CorpusError(
                f"the split {name!r} is empty: the {num_documents:,} documents are near copies of each other; give "
                "other text, or one split alone (--held-out 0)"
            )
    return numbers_D


def _by_rank(positions_D: np.ndarray, shares: list[float], least: list[int]) -> np.ndarray:
    """Splits from the last one, each as many of the documents that lie last as it wants; the first has the rest."""
    numbers_D = np.zeros(len(positions_D), dtype=np.int64)
    places, groups_D, sizes = np.unique(positions_D, return_inverse=True, return_counts=True)
    group = len(places)
    for number in range(len(shares) - 1, 0, -1):
        wanted = max(round(shares[number] * len(positions_D)), least[number])
        while wanted > 0 and group > number:  # one group at least for each split before it
            group -= 1
            wanted -= int(sizes[group])
            numbers_D[groups_D == group] = number
    return numbers_D


def can_be_cut(lengths_D: np.ndarray, splits: Mapping[str, SplitRecipe], *, chats: bool) -> bool:
    """Whether there are so few texts that the long ones are cut, a span for each split."""
    few = LEAST_DOCUMENTS <= len(lengths_D) < ENOUGH_DOCUMENTS
    return few and not chats and len(splits) > 1 and bool((lengths_D >= _LEAST_CUT_TOKENS).any())


def spans_of(num_tokens: int, splits: Mapping[str, SplitRecipe]) -> list[tuple[int, int, int]]:
    """(split, first token, tokens) of one text's spans; a short text is of the first split as a whole."""
    if num_tokens < _LEAST_CUT_TOKENS:
        return [(0, 0, num_tokens)]
    held_out = [int(max(s.share, _LARGEST_SHARE) * num_tokens) for s in list(splits.values())[1:]]
    first = num_tokens - sum(held_out)
    spans, at = [(0, 0, max(first, GAP_TOKENS))], max(first, GAP_TOKENS)
    for number, length in enumerate(held_out, 1):
        spans.append((number, at + GAP_TOKENS, length - GAP_TOKENS))
        at += length
    return spans
