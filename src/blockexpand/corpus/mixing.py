"""How often each source's documents are taken, so that the mixture is what the recipe asks for.

In: tokens that each source has, epochs or shares that are wanted, a limit. Out: how many tokens each source gives,
and the documents in the order in which they are packed: every whole epoch, then a sample of a last one, the sources
interleaved evenly. Constant memory. Refused: a share that would repeat a source too often.

Shapes: D = documents of one source, B = bins of a histogram.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from blockexpand.corpus.fingerprints import mixed
from blockexpand.errors import CorpusError

_BINS = 1 << 16
_DOCUMENTS_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weight:
    """What the recipe asks of one source."""

    title: str
    """For messages."""
    epochs: float | None
    share: float | None
    num_tokens: int
    """That it has."""


def wanted_tokens(weights: Sequence[Weight], max_tokens: int | None, max_epochs: float) -> list[float]:
    """How many tokens each source is to give.

    Epochs are of the source's own tokens. Shares are of the sum; where every source has one, the sum is as large
    as it can be without repeating any source, or `max_tokens`.

    Raises:
        CorpusError: a source with a share is empty, or would be repeated more than `max_epochs` times.
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
        if weight.share is not None and tokens > max_epochs * weight.num_tokens:
            raise CorpusError(
                f"the source {weight.title} has {weight.num_tokens:,} tokens, and its share of {weight.share:g} is "
                f"{tokens:,.0f}: {tokens / max(weight.num_tokens, 1):.1f} epochs, more than max_epochs {max_epochs:g}; "
                "give more text, a smaller share or a smaller max_tokens"
            )
    return wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which documents of a source are taken, and how often."""

    num_epochs: int
    """Whole ones."""
    threshold: float
    """Of one more epoch, the documents whose hash, a number in [0, 1), is below this..."""
    extra: frozenset[int]
    """...and these."""
    num_tokens: int
    num_documents: int
    num_bytes: int


def _hashes(start: int, count: int) -> np.ndarray:
    """A number in [0, 1) for each document by its place, so that a part of an epoch is a fair sample."""
    numbers = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    return (mixed(numbers * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)) / float(1 << 53)


def _blocks(documents_D3: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(documents_D3), _DOCUMENTS_AT_ONCE):
        yield start, np.asarray(documents_D3[start : start + _DOCUMENTS_AT_ONCE])


def choose(documents_D3: np.ndarray, wanted: float) -> Chosen:
    """Documents of about `wanted` tokens: off by less than the shortest that was left out.

    Args:
        documents_D3: First token, tokens and bytes of each document of the source, int64 [D, 3].
        wanted: Tokens.
    """
    totals = np.zeros(2, dtype=np.int64)
    for _, block in _blocks(documents_D3):
        totals += block[:, 1:].sum(axis=0)
    own, own_bytes = int(totals[0]), int(totals[1])
    if not own:
        return Chosen(num_epochs=0, threshold=0.0, extra=frozenset(), num_tokens=0, num_documents=0, num_bytes=0)
    num_epochs = int((wanted + 0.5) // own)
    rest = round(wanted) - num_epochs * own
    count, tokens, num_bytes, threshold, extra = _sampled(documents_D3, max(rest, 0))
    return Chosen(
        num_epochs=num_epochs,
        threshold=threshold,
        extra=extra,
        num_tokens=num_epochs * own + tokens,
        num_documents=num_epochs * len(documents_D3) + count,
        num_bytes=num_epochs * own_bytes + num_bytes,
    )


def _sampled(documents_D3: np.ndarray, rest: int) -> tuple[int, int, int, float, frozenset[int]]:
    """Documents, tokens, bytes, threshold and further documents of a part of an epoch of `rest` tokens."""
    if not rest:
        return 0, 0, 0, 0.0, frozenset()
    sums_B = np.zeros(_BINS, dtype=np.int64)
    for start, block in _blocks(documents_D3):
        bins = (_hashes(start, len(block)) * _BINS).astype(np.int64)
        sums_B += np.bincount(bins, weights=block[:, 1], minlength=_BINS).astype(np.int64)
    below = int(np.searchsorted(np.cumsum(sums_B), rest, side="right"))  # bins that are taken whole
    threshold = below / _BINS
    count = tokens = num_bytes = 0
    border: list[tuple[float, int, int, int]] = []  # the documents behind it, those with the smallest hashes
    for start, block in _blocks(documents_D3):
        hashes = _hashes(start, len(block))
        inside = hashes < threshold
        count += int(inside.sum())
        tokens += int(block[inside, 1].sum())
        num_bytes += int(block[inside, 2].sum())
        near = np.flatnonzero((hashes >= threshold) & (block[:, 1] <= rest))
        border += [(float(hashes[i]), start + int(i), int(block[i, 1]), int(block[i, 2])) for i in near]
        border = heapq.nsmallest(_DOCUMENTS_AT_ONCE, border)
    extra = set()
    for _, number, length, size in border:
        if tokens + length <= rest:
            extra.add(number)
            count, tokens, num_bytes = count + 1, tokens + length, num_bytes + size
    return count, tokens, num_bytes, threshold, frozenset(extra)


def in_order(chosen: Chosen, documents_D3: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first token, tokens) of every document that is taken, epoch by epoch."""
    for _ in range(chosen.num_epochs):
        for _, block in _blocks(documents_D3):
            yield from zip(block[:, 0].tolist(), block[:, 1].tolist(), strict=True)
    if chosen.threshold or chosen.extra:
        for start, block in _blocks(documents_D3):
            below = _hashes(start, len(block)) < chosen.threshold
            for i in np.flatnonzero(below | np.isin(np.arange(start, start + len(block)), list(chosen.extra))):
                yield int(block[i, 0]), int(block[i, 1])


def interleaved(streams: Sequence[tuple[Chosen, np.ndarray]]) -> Iterator[tuple[int, int, int]]:
    """(source, first token, tokens) of every document, each source spread evenly over the whole."""
    waiting = []
    for source, (chosen, documents_D3) in enumerate(streams):
        if chosen.num_tokens:
            waiting.append((0.0, source, 0, in_order(chosen, documents_D3)))
    heapq.heapify(waiting)
    while waiting:
        _, source, given, stream = waiting[0]
        document = next(stream, None)
        if document is None:
            heapq.heappop(waiting)
            continue
        yield source, *document
        given += document[1]
        heapq.heapreplace(waiting, (given / streams[source][0].num_tokens, source, given, stream))
