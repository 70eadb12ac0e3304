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


def document_losses(model: PreTrainedModel, rows: TokenRows, rows_per_pass: int, title: str) -> DocumentLosses:
    """The cross-entropies of every document of a split under `model` (in eval mode, no gradient)."""
    nats: dict[int, float] = {}
    tokens: dict[int, int] = {}
    device = next(model.parameters()).device
    with bar(title, rows.num_rows * rows.row_tokens, "tokens") as progress:
        for chosen in batches(rows.num_rows, rows_per_pass):
            trained_NT = rows.trained_NT(chosen)
            batch = RowBatch.of(rows.tokens_NT(chosen), rows.positions_NT(chosen), trained_NT, device)
            losses_R = cross_entropies(model, batch).double().cpu().numpy()
            for document, part in by_document(rows, chosen, trained_NT, losses_R):
                nats[document] = nats.get(document, 0.0) + float(part.sum())
                tokens[document] = tokens.get(document, 0) + len(part)
            progress.advance(len(chosen) * rows.row_tokens)
    order = sorted(nats)
    return DocumentLosses(
        nats_M=np.array([nats[d] for d in order]),
        tokens_M=np.array([tokens[d] for d in order], dtype=np.int64),
    )


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
