"""Attention in blocks: torch's numbers, gradients included, and nothing that it does not do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from blockexpand.errors import TrainingError
from blockexpand.live import attention, blocked
from blockexpand.live.attention import prefer_blocked, set_attention
from blockexpand.live.forward import attention_of
from helpers import tiny_model

CPU = torch.device("cpu")
B, H, T, D = 3, 4, 150, 8


def documents(lengths: list[list[int]]) -> Tensor:
    """The mask [B, 1, T, T] of rows of documents."""
    number_BT = torch.stack([torch.repeat_interleave(torch.tensor(row)) for row in lengths])
    return (number_BT[:, None, :, None] == number_BT[:, None, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()


MASKS = {
    "causal": None,
    "documents": documents([[T], [3, 64, 83], [70, 1, 79]]),
    "window": (torch.ones(T, T, dtype=torch.bool).tril() & torch.ones(T, T, dtype=torch.bool).triu(-10))[None, None],
}


def both(mask: Tensor | None, groups: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Results and gradients of ours and torch's, on the same numbers."""
    torch.manual_seed(0)
    q = torch.randn(B, H, T, D, dtype=dtype)
    k, v = (torch.randn(B, groups, T, D, dtype=dtype) for _ in range(2))
    grad = torch.randn(B, T, H, D, dtype=dtype)
    found = []
    for ours in (True, False):
        sides = [x.clone().requires_grad_() for x in (q, k, v)]
        if ours:
            out = blocked.attend(*sides, mask, 0.3)
        else:
            causal = mask is None
            out = scaled_dot_product_attention(*sides, attn_mask=mask, is_causal=causal, scale=0.3, enable_gqa=True)
            out = out.transpose(1, 2)
        out.backward(grad)
        gradients = [x.grad for x in sides if x.grad is not None]
        found.append([out.detach(), *gradients])
    return found


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_results_and_gradients_are_torchs(mask: str, groups: int) -> None:
    ours, theirs = both(MASKS[mask], groups, torch.float32)
    assert len(ours) == 4
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_near_to_the_exact_numbers_as_torchs() -> None:
    exact = both(None, 4, torch.float32)[1]
    ours, theirs = both(None, 4, torch.bfloat16)
    # The inputs are rounded as well, so both are off; ours must not be further off than torch's by half.
    for a, b, true in zip(ours, theirs, exact, strict=True):
        assert (a.float() - true).abs().mean() <= 1.5 * (b.float() - true).abs().mean()


def test_keys_no_query_of_a_block_sees_are_not_touched() -> None:
    q, k, v = (torch.randn(1, 1, T, D) for _ in range(3))
    mask = documents([[64, 86]])
    k[:, :, :64], v[:, :, :64] = float("nan"), float("nan")  # whatever is multiplied with them shows it
    assert blocked.attend(q, k, v, mask, 1.0)[:, 64:].isfinite().all()
    assert blocked.attend(q, k, v, None, 1.0).isnan().all()


def test_a_query_that_sees_nothing_gets_finite_numbers() -> None:
    q, k, v = (torch.randn(1, 1, T, D, requires_grad=True) for _ in range(3))
    mask = torch.ones(1, 1, T, T, dtype=torch.bool).tril()
    mask[..., :70, :] = False
    blocked.attend(q, k, v, mask, 1.0).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize(
    ("mask", "options", "said"),
    [
        (None, {"softcap": 50.0}, "softcap"),
        (None, {"s_aux": torch.ones(4)}, "s_aux"),
        (None, {"dropout": 0.1}, "dropout"),
        (None, {"is_causal": False}, "attention that is not causal"),
        (torch.zeros(1, 1, T, T), {}, "a mask of numbers"),
    ],
)
def test_what_it_does_not_do_is_refused(mask: Tensor | None, options: dict, said: str) -> None:
    q, k, v = (torch.randn(1, 1, T, D) for _ in range(3))
    with pytest.raises(blocked.UnsupportedAttentionError, match=f"does not do: {said}"):
        blocked.attention_forward(torch.nn.Identity(), q, k, v, mask, **options)


def test_auto_takes_it_where_it_agrees_and_leaves_it_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    set_attention(model, "auto", CPU)
    assert prefer_blocked(model, "auto") == attention_of(model) == blocked.NAME

    model = tiny_model("llama")
    set_attention(model, "auto", CPU)
    right = blocked.attend
    monkeypatch.setattr(blocked, "attend", lambda q, k, v, mask, scale: right(q, k, v, mask, 1.01 * scale))
    assert prefer_blocked(model, "auto") == attention_of(model) == "sdpa"
    with pytest.raises(TrainingError, match=r"'blocked' cannot be used for LlamaForCausalLM on cpu: it is off"):
        prefer_blocked(model, "blocked")
    assert attention_of(model) == "sdpa"


def test_asked_for_where_it_cannot_be_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(TrainingError, match=r"'blocked' cannot be used for \w+ on cuda: it is for the CPU"):
        set_attention(model, "blocked", torch.device("cuda"))
    set_attention(model, "eager", CPU)
    with pytest.raises(TrainingError, match=r"'blocked' cannot be used .*: this family runs with eager attention"):
        prefer_blocked(model, "blocked")


def test_a_family_that_treats_it_otherwise_keeps_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    set_attention(model, "auto", CPU)
    right, calls = attention.packed_states, []

    def otherwise(*arguments: Tensor) -> Tensor:
        calls.append(attention_of(model))
        return right(*arguments) + (calls[-1] == blocked.NAME)

    monkeypatch.setattr(attention, "packed_states", otherwise)
    with pytest.raises(TrainingError, match="the family treats it otherwise than sdpa"):
        prefer_blocked(model, "blocked")
    monkeypatch.setattr(attention, "packed_states", lambda *arguments: arguments[1].float())
    with pytest.raises(TrainingError, match="the family does not call transformers' attention functions"):
        prefer_blocked(model, "blocked")
