"""How often each source's documents are taken, so that the mixture is what the recipe asks for, to the token.

In: tokens that each source has, epochs or shares that are wanted, a limit. Out: the runs of tokens in the order in
which they are packed: every whole epoch, then a sample of a last one, whose last document is cut; the sources
interleaved evenly. Refused: a share that would repeat a source too often.

Shapes: D = documents of one source and split, [D, 2] their first token and their length.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from blockexpand.corpus.copies import mixed
from blockexpand.errors import CorpusError

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MOST_EPOCHS = 4
"""How often shares may have a source repeated: so many epochs are nearly as good as new text (Muennighoff et al. 2023,
arXiv 2305.16264)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """What the recipe asks of one source."""

    title: str
    """For messages."""
    epochs: float | None
    share: float | None
    num_tokens: int
    """That it has."""


def wanted_tokens(weights: Sequence[Weight], max_tokens: int | None) -> list[int]:
    """How many tokens each source is to give.

    Epochs are of the source's own tokens. Shares are of the sum; where every source has one, the sum is as large
    as it can be without repeating any source, or `max_tokens`.

    Raises:
        CorpusError: a source with a share is empty, or would be repeated more than four times.
    """
    fixed = sum((w.epochs or 0.0) * w.num_tokens for w in weights)
    shares = sum(w.share or 0.0 for w in weights)
    if all(w.share is not None for w in weights):
        largest = min(w.num_tokens / w.share for w in weights if w.share is not None)
        total = float(max_tokens) if max_tokens is not None else largest
    else:
        total = fixed / (1 - shares)
    scale = min(1.0, max_tokens / total) if max_tokens is not None and total else 1.0
    wanted = [scale * (w.share * total if w.share is not None else (w.epochs or 0.0) * w.num_tokens) for w in weights]
    for weight, tokens in zip(weights, wanted, strict=True):
        if weight.share is not None and tokens > _MOST_EPOCHS * weight.num_tokens:
            raise CorpusError(
                f"the source {weight.title} has {weight.num_tokens:,} tokens, and its share of {weight.share:g} is "
                f"{tokens:,.0f}: {tokens / max(weight.num_tokens, 1):.1f} epochs, more than {_MOST_EPOCHS}; "
                "give more text, a smaller share or a smaller max_tokens"
            )
    return [round(tokens) for tokens in wanted]


def take(runs_D2: np.ndarray, num_tokens: int) -> Iterator[tuple[int, int, int]]:
    """(document, first token, tokens) of exactly `num_tokens`: whole epochs, then a sample whose last one is cut."""
    own = int(runs_D2[:, 1].sum())
    if not own:
        return
    for _ in range(num_tokens // own):
        for document, (first, length) in enumerate(runs_D2.tolist()):
            yield document, first, length
    rest = num_tokens % own
    order = np.argsort(mixed(np.arange(1, len(runs_D2) + 1, dtype=np.uint64) * _STEP)) if rest else []
    for document in order:
        first, length = runs_D2[document].tolist()
        yield int(document), first, min(length, rest)
        rest -= length
        if rest <= 0:
            return


def interleave(sources: Sequence[tuple[np.ndarray, int]]) -> Iterator[tuple[int, int, int, int]]:
    """(source, document, first token, tokens) of every run, each source spread evenly over the whole.

    Args:
        sources: Each source's runs, int64 [D, 2], and how many of its tokens are taken.
    """
    waiting = [(0.0, n, 0, take(runs, tokens)) for n, (runs, tokens) in enumerate(sources) if tokens]
    while waiting:
        _, source, given, stream = waiting[0]
        run = next(stream, None)
        if run is None:
            heapq.heappop(waiting)
            continue
        yield source, *run
        given += run[2]
        heapq.heapreplace(waiting, (given / sources[source][1], source, given, stream))
