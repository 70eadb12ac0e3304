"""The lean loss: the plain loss's values and gradients, without ever holding all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from blockexpand.live import loss as lean
from blockexpand.live.loss import Reference, linear_losses
from blockexpand.live.parts import Head

R, D, V = 23, 16, 40
CAPPED = {"factor": 0.7, "soft_cap": 3.0}


def cap(product: Tensor) -> Tensor:
    """By the definition in Head's docstring."""
    return 3.0 * torch.tanh(0.7 * product / 3.0)


def inputs(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden": torch.randn(R, D, generator=g).to(dtype),
        "head": torch.randn(V, D, generator=g).to(dtype),
        "targets": torch.randint(V, (R,), generator=g),
        "weight": torch.rand(R, generator=g),
        "ref_hidden": torch.randn(R, D, generator=g).to(dtype),
        "ref_head": torch.randn(V, D, generator=g).to(dtype),
        "kl_weight": torch.rand(R, generator=g),
    }


def plain(x: dict[str, Tensor], num_asked: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss is by definition, with all logits at once, in float64."""
    hidden, head = (x[k].detach().double().requires_grad_() for k in ("hidden", "head"))
    log_p = cap(hidden @ head.T).log_softmax(-1)
    total = (functional.nll_loss(log_p, x["targets"], reduction="none") * x["weight"].double()).sum()
    if num_asked:
        log_q = cap(x["ref_hidden"].double() @ x["ref_head"].double().T).log_softmax(-1)
        kl_R = (log_q.exp() * (log_q - log_p)).sum(-1) * x["kl_weight"].double()
        total = total + kl_R[-num_asked:].sum()
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return total.detach(), hidden.grad, head.grad


def ours(x: dict[str, Tensor], num_asked: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden, head = x["hidden"].clone().requires_grad_(), x["head"].clone().requires_grad_()
    reference = None
    if num_asked:
        hidden_GD, weight_G = x["ref_hidden"][-num_asked:], x["kl_weight"][-num_asked:]
        reference = Reference(hidden_GD=hidden_GD, head=Head(weight_VD=x["ref_head"], **CAPPED), weight_G=weight_G)
    total, ce_R, kl_R = linear_losses(hidden, Head(weight_VD=head, **CAPPED), x["targets"], x["weight"], reference)
    total.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return total.detach(), hidden.grad, head.grad, ce_R, kl_R


@pytest.mark.parametrize("num_asked", [0, 1, 6, R], ids=lambda number: f"the base at the last {number}")
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_values_and_gradients_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch, num_asked: int, chunk: int) -> None:
    monkeypatch.setattr(lean, "CHUNK_POSITIONS", chunk)
    x = inputs()
    expected = plain(x, num_asked)
    total, grad_hidden, grad_head, ce_R, kl_R = ours(x, num_asked)
    for mine, theirs in zip((total, grad_hidden, grad_head), expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-5, atol=2e-5)
    log_p = cap(x["hidden"].double() @ x["head"].double().T).log_softmax(-1)
    torch.testing.assert_close(ce_R.double(), -log_p.gather(1, x["targets"][:, None])[:, 0], rtol=1e-5, atol=1e-5)
    assert (kl_R[R - num_asked :] > 0).all()
    assert (kl_R[: R - num_asked] == 0).all()


def test_the_base_is_not_asked_where_it_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rows = inputs(), []
    whole = Head.logits_CV
    monkeypatch.setattr(Head, "logits_CV", lambda head, hidden: (rows.append(len(hidden)), whole(head, hidden))[1])
    ours(x, 6)
    assert sum(rows) == R + 6


def test_a_trained_head_under_bf16_compute_keeps_a_float32_gradient() -> None:
    x = inputs()
    head = x["head"].clone().requires_grad_()
    linear_losses(x["hidden"].bfloat16(), Head(weight_VD=head, **CAPPED), x["targets"], x["weight"])[0].backward()
    assert head.grad is not None
    assert head.grad.dtype == torch.float32
    torch.testing.assert_close(head.grad, ours(x, 0)[2], rtol=0.05, atol=0.05)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_all_logits_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CHUNK_POSITIONS", 4)
    x = inputs()
    hidden = x["hidden"].clone().requires_grad_()
    with Largest() as largest:
        linear_losses(hidden, Head(weight_VD=x["head"]), x["targets"], x["weight"])[0].backward()
    assert largest.numel == max(4 * V, R * D, V * D)
    assert largest.numel < R * V
