"""Held-out cross-entropy of a model on one split of a prepared corpus, document by document.

Every token of a document but its first is predicted once, from what stands before it in its piece; long
documents are cut into pieces of one row (`row_tokens`), so the context is stated by the corpus. Bits per
byte divides by the documents' UTF-8 bytes and so compares across tokenizers; the end-of-text tokens'
cost is counted in it.
"""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedModel

from blockexpand.corpus.rows import TokenRows, batches
from blockexpand.live.forward import RowBatch, cross_entropies
from blockexpand.progress import bar
from blockexpand.records.evaluation import DocumentLosses

# M = documents, N = rows of a batch, T = tokens of a row, R = positions that count.


def document_losses(
    model: PreTrainedModel, rows: TokenRows, rows_per_pass: int, title: str, limit: int | None = None
) -> DocumentLosses:
    """The cross-entropies of every document of a split under `model` (in eval mode, no gradient).

    With `limit`, of the first so many documents only.
    """
    nats: dict[int, float] = {}
    tokens: dict[int, int] = {}
    device = next(model.parameters()).device
    numbers, wanted = _rows_of(rows, limit)
    with bar(title, len(numbers) * rows.row_tokens, "tokens") as progress:
        for part in batches(len(numbers), rows_per_pass):
            chosen = numbers[part]
            trained_NT = rows.trained_NT(chosen)
            batch = RowBatch.of(rows.tokens_NT(chosen), rows.positions_NT(chosen), trained_NT, device)
            losses_R = cross_entropies(model, batch).double().cpu().numpy()
            for document, some in by_document(rows, chosen, trained_NT, losses_R):
                if wanted is not None and document not in wanted:
                    continue
                nats[document] = nats.get(document, 0.0) + float(some.sum())
                tokens[document] = tokens.get(document, 0) + len(some)
            progress.advance(len(chosen) * rows.row_tokens)
    order = sorted(nats)
    return DocumentLosses(
        nats_M=np.array([nats[d] for d in order]),
        tokens_M=np.array([tokens[d] for d in order], dtype=np.int64),
    )


def _rows_of(rows: TokenRows, limit: int | None) -> tuple[np.ndarray, set[int] | None]:
    """The rows with the first `limit` documents, and these documents' numbers."""
    every = np.arange(rows.num_rows)
    if limit is None:
        return every, None
    found = rows.documents(every)
    wanted = set(sorted({document for some in found for document in some})[:limit])
    return every[[not wanted.isdisjoint(some) for some in found]], wanted


def by_document(
    rows: TokenRows, chosen: np.ndarray, trained_NT: np.ndarray, losses_R: np.ndarray
) -> list[tuple[int, np.ndarray]]:
    """The losses, which come in row order, cut by the segments they belong to."""
    found = []
    at = 0
    for number, (lengths, documents) in enumerate(zip(rows.lengths(chosen), rows.documents(chosen), strict=True)):
        start = 0
        for length, document in zip(lengths, documents, strict=True):
            count = int(trained_NT[number, start : start + length].sum())
            if count:
                found.append((document, losses_R[at : at + count]))
            at += count
            start += length
    assert at == len(losses_R), f"{len(losses_R)} losses for {at} tokens that count"
    return found
