"""How many tokens of each document a model has right, given all tokens before them: one pass, nothing generated.

A document whose every counted token is right is one that greedy decoding would have written to the letter: given its
own right words it goes on with the right ones, and what ends it counts too. Of conversations only the assistant's
turns count.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from transformers import PreTrainedModel

from blockexpand.corpus.rows import TokenRows, batches
from blockexpand.evaluation.held_out import by_document
from blockexpand.live.forward import RowBatch, hidden_states
from blockexpand.live.parts import head_of

# M = documents, R = positions that count, V = vocabulary.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hits:
    """Tokens that are the likeliest ones, by document."""

    right_M: np.ndarray
    """int64: tokens of each document that the model would have said."""
    tokens_M: np.ndarray
    """int64: tokens of each document that count."""

    @property
    def whole_M(self) -> np.ndarray:
        """Whether all of a document's tokens are right."""
        return self.right_M == self.tokens_M

    @property
    def share_M(self) -> np.ndarray:
        """The share of each document's tokens that are right."""
        return self.right_M / self.tokens_M


@torch.no_grad()
def document_hits(model: PreTrainedModel, rows: TokenRows, rows_per_pass: int = 16) -> Hits:
    """Compare the likeliest token with the right one, everywhere it counts."""
    right: dict[int, int] = {}
    tokens: dict[int, int] = {}
    device = next(model.parameters()).device
    head = head_of(model)
    for chosen in batches(rows.num_rows, rows_per_pass):
        trained_NT = rows.trained_NT(chosen)
        batch = RowBatch.of(rows.tokens_NT(chosen), rows.positions_NT(chosen), trained_NT, device)
        hidden_RD = hidden_states(model, batch)[batch.predicted_BT()]
        right_R = (head.logits_CV(hidden_RD).argmax(-1) == batch.targets_R()).double().cpu().numpy()
        for document, part in by_document(rows, chosen, trained_NT, right_R):
            right[document] = right.get(document, 0) + int(part.sum())
            tokens[document] = tokens.get(document, 0) + len(part)
    order = sorted(right)
    return Hits(right_M=np.array([right[d] for d in order]), tokens_M=np.array([tokens[d] for d in order]))
