"""Is the tiny base a real language model? Its held-out loss against a 5-gram and an untrained model.

In: the corpus the tiny base was trained on (`make tiny-base` leaves it in its work folder), the shipped
model, the untrained one. Out: a table of nats per token, perplexity and bits per byte on the same test
documents with the same tokenizer.

The 5-gram is interpolated modified Kneser-Ney (Chen & Goodman 1998, section 3; discounts estimated from
the counts of counts of each order), on the same training documents, borders and all.

    python benchmarks/ngram.py WORK [--order 5]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from blockexpand.corpus.rows import TokenRows, open_corpus

# G = distinct n-grams, P = positions.

_TOKEN_BITS = 12
"""A token id must fit, so that five of them fit 64 bits: vocabularies up to 4096."""


@dataclasses.dataclass(frozen=True)
class _Order:
    """One order's n-grams, sorted, and their contexts."""

    keys_G: np.ndarray
    counts_G: np.ndarray
    context_keys: np.ndarray
    context_totals: np.ndarray
    context_backoff: np.ndarray
    discounts: tuple[float, float, float]


class KneserNey:
    """An interpolated modified Kneser-Ney model over token ids."""

    def __init__(self, documents: Iterable[np.ndarray], order: int, vocabulary_size: int) -> None:
        """Count the documents; each begins with a begin token, which nothing precedes."""
        if vocabulary_size > 1 << _TOKEN_BITS or order > 5:
            raise ValueError(f"{vocabulary_size} tokens to the power {order} do not fit 64 bits")
        self.order, self.vocabulary_size = order, vocabulary_size
        documents = list(documents)
        raw = [_count(documents, n) for n in range(1, order + 1)]
        self._orders = [self._estimate(raw, n, documents) for n in range(1, order + 1)]

    def _estimate(self, raw: list[tuple[np.ndarray, np.ndarray]], n: int, documents: list) -> _Order:
        keys, counts = raw[n - 1]
        if n < self.order:
            # Lower orders count in how many different contexts an n-gram continues; those at a document's
            # start continue nothing and keep their own counts.
            continued, times = np.unique(_suffix(raw[n][0], n), return_counts=True)
            begin = documents[0][0]
            starts = (keys >> np.uint64(_TOKEN_BITS * (n - 1))) == np.uint64(begin)
            where = np.searchsorted(continued, keys)
            where[where == len(continued)] = 0
            adjusted = np.where(continued[where] == keys, times[where], 0)
            counts = np.where(starts, counts, adjusted)
            if n == 1:
                counts = np.where(starts, 0, counts)  # the begin token itself is never predicted
            keys, counts = keys[counts > 0], counts[counts > 0]
        discounts = _discounts(counts)
        contexts = keys >> np.uint64(_TOKEN_BITS)
        context_keys, first = np.unique(contexts, return_index=True)
        totals = np.add.reduceat(counts, first)
        capped = np.minimum(counts, 3)
        lost = sum(discounts[c - 1] * np.add.reduceat((capped == c).astype(float), first) for c in (1, 2, 3))
        return _Order(keys, counts, context_keys, totals, lost / totals, discounts)

    def probabilities(self, contexts: list[tuple[np.ndarray, np.ndarray]], tokens_P: np.ndarray) -> np.ndarray:
        """p(token | context) of each position.

        `contexts[n]` holds the keys of the n tokens before each position, with a mask of those that have
        so many: (keys [P], mask [P]).
        """
        p = np.full(len(tokens_P), 1.0 / self.vocabulary_size)
        for n, order in enumerate(self._orders, start=1):
            keys_P, has_P = contexts[n - 1]
            at, known = _find(order.context_keys, keys_P)
            known &= has_P
            grams = (keys_P << np.uint64(_TOKEN_BITS)) | tokens_P.astype(np.uint64)
            where, seen = _find(order.keys_G, grams)
            count = np.where(seen, order.counts_G[where], 0)
            discount = np.select([count == 1, count == 2, count > 2], order.discounts, 0.0)
            interpolated = (count - discount) / order.context_totals[at] + order.context_backoff[at] * p
            p = np.where(known, interpolated, p)
        return p

    def document_nats(self, document: np.ndarray) -> float:
        """The cross-entropy of a document's tokens but the first, in nats."""
        tokens = document[1:]
        contexts = [_contexts(document, n) for n in range(self.order)]
        return float(-np.log(self.probabilities(contexts, tokens)).sum())


def _contexts(document: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    length = len(document) - 1
    keys, has = np.zeros(length, dtype=np.uint64), np.zeros(length, dtype=bool)
    if n == 0:
        return keys, np.ones(length, dtype=bool)
    if len(document) > n:
        grams = _grams(document[:-1], n)
        keys[n - 1 :], has[n - 1 :] = grams, True
    return keys, has


def _grams(document: np.ndarray, n: int) -> np.ndarray:
    keys = np.zeros(max(0, len(document) - n + 1), dtype=np.uint64)
    for offset in range(n):
        keys = (keys << np.uint64(_TOKEN_BITS)) | document[offset : offset + len(keys)].astype(np.uint64)
    return keys


def _count(documents: list[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(np.concatenate([_grams(d, n) for d in documents]), return_counts=True)


def _suffix(keys: np.ndarray, n: int) -> np.ndarray:
    return keys & np.uint64((1 << (_TOKEN_BITS * n)) - 1)


def _find(sorted_keys: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    ones, twos, threes, fours = (max(1, int((counts == c).sum())) for c in (1, 2, 3, 4))
    y = ones / (ones + 2 * twos)
    raw = (1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes)
    one, two, three = (min(max(d, 0.05), c) for d, c in zip(raw, (0.99, 1.99, 2.99), strict=True))
    return one, two, three


def documents_of(rows: TokenRows) -> list[np.ndarray]:
    """The documents of a split put together again from their pieces (which overlap by one token)."""
    everything = np.arange(rows.num_rows)
    tokens = rows.tokens_NT(everything)
    pieces: dict[int, list[np.ndarray]] = {}
    for row, (lengths, numbers) in enumerate(zip(rows.lengths(everything), rows.documents(everything), strict=True)):
        at = 0
        for length, number in zip(lengths, numbers, strict=True):
            pieces.setdefault(number, []).append(tokens[row, at : at + length])
            at += length
    return [_joined(parts) for _, parts in sorted(pieces.items())]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Pieces in order: the first begins with the begin token, each next one with the last one's end."""
    if len(parts) == 1:
        return parts[0]
    # Packing may have put a document's pieces in any rows; a shorter piece can only be its last.
    full = max(len(p) for p in parts)
    parts = sorted(parts, key=lambda p: (p[0] != 0, len(p) < full))
    return np.concatenate([parts[0], *(p[1:] for p in parts[1:])])


def report(nats: float, num_tokens: int, num_bytes: int) -> dict[str, float]:
    """The three figures of a model."""
    loss = nats / num_tokens
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": nats / math.log(2) / num_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    corpus = open_corpus(arguments.work / "corpus")
    train, test = documents_of(corpus.rows("train")), documents_of(corpus.rows("test"))
    counts = corpus.record.splits["test"]
    figures = {}
    for order in range(1, arguments.order + 1):
        model = KneserNey(train, order, corpus.record.vocabulary_size)
        nats = sum(model.document_nats(d) for d in test)
        figures[f"{order}-gram"] = report(nats, sum(len(d) - 1 for d in test), counts.num_bytes)
    if arguments.json:
        print(json.dumps(figures, indent=2))
    for name, row in figures.items():
        print(f"{name:>10}  {row['loss']:.4f} nats/token  ppl {row['perplexity']:8.2f}  {row['bits_per_byte']:.4f} bpb")


if __name__ == "__main__":
    main()
