"""Documents that share a row: changing one changes no bit of another, in every family and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from zoo import ZOO, Case, build

from blockexpand.errors import TrainingError
from blockexpand.families import known_families
from blockexpand.live import forward
from blockexpand.live.attention import set_attention
from blockexpand.live.forward import (
    RowBatch,
    check_head,
    check_isolation,
    hidden_states,
    isolates,
    leak,
    packed_states,
    states_apart,
)
from blockexpand.live.parts import head_of

CPU = torch.device("cpu")
A, B, C = 17, 20, 11
APART = {
    # Masks that know nothing of positions (transformers 5.24).
    "gpt_oss", "opt", "bloom", "mpt", "qwen2_5_vl",
    # State or a convolution that goes over borders.
    "qwen3_next", "jamba", "bamba", "granitemoehybrid", "lfm2", "lfm2_moe", "mamba", "mamba2", "falcon_mamba",
    "falcon_h1",
}  # fmt: skip
"""Families whose documents have to run in rows of their own."""
CASES = [row for row in ZOO if row.model_type != "llama4"]  # its multimodal class does not run on text alone


def batch(tokens_BT: Tensor) -> RowBatch:
    positions_BT = np.tile(np.concatenate([np.arange(length) for length in (A, B, C)]), (len(tokens_BT), 1))
    return RowBatch.of(tokens_BT.numpy(), positions_BT, np.ones(positions_BT.shape, dtype=bool), CPU)


def rows() -> Tensor:
    return torch.randint(3, 90, (2, A + B + C), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits(model: Any, tokens_BT: Tensor) -> Tensor:
    return head_of(model).logits_CV(hidden_states(model, batch(tokens_BT)))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("row", CASES, ids=[row.id for row in CASES])
def test_no_document_changes_a_bit_of_another(row: Case, attention: str) -> None:
    model = build(row)
    try:
        set_attention(model, attention, CPU)
    except TrainingError as error:
        assert attention in str(error)  # noqa: PT017
        pytest.skip(f"{row.family} has no {attention}")
    check_isolation(model)
    tokens_BT = rows()
    check_head(model, batch(tokens_BT))
    before = logits(model, tokens_BT)
    for changed in (slice(0, A), slice(A, A + B), slice(A + B, None)):
        others = tokens_BT.clone()
        others[0, changed] = 3 + (others[0, changed] - 2) % 87
        # Experts take tokens of all documents in one product, whose last bits depend on how many there are.
        tolerance = 1e-5 if known_families()[row.family].block.experts else 0.0
        moved_BT = ((logits(model, others) - before).abs() > tolerance).any(-1)
        assert moved_BT[0, changed].all(), "the document itself did not change"
        moved_BT[0, changed] = False
        assert not moved_BT.any(), f"{int(moved_BT.sum())} positions of other documents moved"
    assert isolates(model) == (row.family not in APART)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "opt", "mamba2", "jamba", "lfm2"])
def test_a_document_gives_in_a_row_what_it_gives_alone(family: str) -> None:
    model, tokens_BT = build(next(row for row in ZOO if row.family == family)), rows()
    with torch.no_grad():
        together = hidden_states(model, batch(tokens_BT))[:, A : A + B]
        alone = packed_states(model, tokens_BT[:, A : A + B], torch.arange(B).repeat(2, 1))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_documents_in_rows_of_their_own_have_the_gradients_of_the_packed_ones() -> None:
    model, tokens_BT = build(next(row for row in ZOO if row.family == "llama")).double(), rows()
    packed = packed_states(model, tokens_BT, batch(tokens_BT).positions_BT)
    both = [packed, states_apart(model, tokens_BT, batch(tokens_BT).starts_N)]
    torch.testing.assert_close(both[1], both[0], rtol=1e-5, atol=1e-5)
    weights = [p for p in model.parameters() if p.ndim == 2 and p is not model.lm_head.weight]
    packed, apart = (torch.autograd.grad(hidden.square().sum(), weights) for hidden in both)
    for mine, other in zip(apart, packed, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_what_still_leaks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard: a model that leaks although it was taken for one that does not."""
    model = build(next(row for row in ZOO if row.family == "gpt_oss"))
    assert leak(model, packed=True) > 0.1
    assert leak(model) <= 1e-6
    monkeypatch.setattr(forward, "isolates", lambda _model: True)
    with pytest.raises(
        TrainingError, match=r"GptOssForCausalLM with eager attention: .* by 0\.[0-9]+ of the largest, expected"
    ):
        check_isolation(model)


@pytest.mark.parametrize(
    ("family", "attention", "words"),
    [
        ("llama", "flex", r"'flex' cannot be used for LlamaForCausalLM on cpu: .*no backward pass on the CPU"),
        ("llama", "flash", r"'flash' cannot be used for LlamaForCausalLM on cpu: .*needs a CUDA device"),
        ("gemma2", "sdpa", r"'sdpa' cannot be used for Gemma2ForCausalLM on cpu: .*choose attention=auto"),
    ],
)
def test_attention_that_is_not_there_is_refused(family: str, attention: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        set_attention(build(next(row for row in ZOO if row.family == family)), attention, CPU)


def test_auto_takes_what_there_is() -> None:
    models = {name: build(next(row for row in ZOO if row.family == name)) for name in ("llama", "gemma2", "mamba2")}
    assert {name: set_attention(model, "auto", CPU) for name, model in models.items()} == {
        "llama": "sdpa",
        "gemma2": "eager",
        "mamba2": "eager",
    }
