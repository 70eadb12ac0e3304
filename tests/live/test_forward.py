"""The forward pass: documents in one row do not see each other, and targets stand where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockexpand.live.forward import RowBatch, cross_entropies, hidden_states
from helpers import CONFIGS, tiny_model

CPU = torch.device("cpu")


def batch_of(tokens: list[list[int]], lengths: list[list[int]]) -> RowBatch:
    positions, trained = [], []
    for row, parts in zip(tokens, lengths, strict=True):
        parts = [*parts, len(row) - sum(parts)] if sum(parts) < len(row) else parts
        positions.append([i for part in parts for i in range(part)])
        trained.append([i > 0 for part in parts for i in range(part)])
    return RowBatch.of(np.array(tokens), np.array(positions), np.array(trained), CPU)


A, B = [5, 9, 11, 40, 7], [3, 60, 22, 8, 17, 33, 2]


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_documents_in_one_row_do_not_see_each_other(family: str) -> None:
    model = tiny_model(family)
    with torch.no_grad():
        together = hidden_states(model, batch_of([A + B], [[5, 7]]))[0]
        alone_a = hidden_states(model, batch_of([A], [[5]]))[0]
        alone_b = hidden_states(model, batch_of([B], [[7]]))[0]
        mixed = hidden_states(model, batch_of([A + B], [[12]]))[0]
    torch.testing.assert_close(together, torch.cat([alone_a, alone_b]), rtol=1e-5, atol=1e-5)
    # The test can fail: without borders the second document is another.
    assert (mixed[5:] - alone_b).abs().max() > 1e-2
    other = batch_of([[1, 2, 3, 4, 6, *B]], [[5, 7]])
    with torch.no_grad():
        assert torch.equal(hidden_states(model, other)[0, 5:], together[5:])


def test_rows_of_different_borders_share_a_batch() -> None:
    model = tiny_model()
    with torch.no_grad():
        both = hidden_states(model, batch_of([A + B, B + A], [[5, 7], [7, 5]]))
        first = hidden_states(model, batch_of([A + B], [[5, 7]]))
    torch.testing.assert_close(both[0], first[0], rtol=1e-5, atol=1e-5)


def test_losses_are_those_of_each_next_token_inside_its_document() -> None:
    model = tiny_model()
    batch = batch_of([A + B], [[5, 7]])
    assert batch.targets_R.tolist() == A[1:] + B[1:]
    assert batch.predicted_R.tolist() == [*range(4), *range(5, 11)]
    assert batch.counts_B == (10,)
    assert batch.starts_N == (0, 5)
    losses_R = cross_entropies(model, batch)
    expected = []
    for document in (A, B):
        with torch.no_grad():
            log_p = model(torch.tensor([document])).logits[0].log_softmax(-1)
        expected += [-log_p[i, token].item() for i, token in enumerate(document[1:])]
    torch.testing.assert_close(losses_R, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_some_of_the_rows_are_what_a_batch_of_them_would_be() -> None:
    whole, last = batch_of([A + B, B + A], [[5, 7], [7, 5]]), batch_of([B + A], [[7, 5]])
    some = whole.rows(1)
    assert (some.counts_B, some.starts_N) == (last.counts_B, last.starts_N)
    for name in ("tokens_BT", "positions_BT", "predicted_R", "targets_R"):
        assert torch.equal(vars(some)[name], vars(last)[name])
