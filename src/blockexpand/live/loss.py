"""Linear cross-entropy and KL in chunks, so that [tokens, vocabulary] logits never exist whole.

In: final hidden states, the head, targets; for retention also the base's hidden states at the last of these places.
Out: one loss per position, and exact gradients for the hidden states and, where it is trained, the head.
Memory: one chunk of logits (two more for the KL), whatever the number of tokens.

Both losses are cross-entropies with a target distribution q, so one pass serves both:
d/dlogits of a CE(onehot, p) + b KL(ref || p) is (a + b) p - a onehot - b ref.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from blockexpand.expansion.cost import CHUNK_POSITIONS
from blockexpand.live.parts import Head

# R = positions that count, G = the last of them, at which the base is asked too, C = positions of one chunk,
# D = hidden size, V = vocabulary.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What the base says at the last G positions; those before have no KL, and cost none."""

    hidden_GD: Tensor
    head: Head
    weight_G: Tensor
    """Of the KL at each position."""


def linear_losses(
    hidden_RD: Tensor,
    head: Head,
    targets_R: Tensor,
    weight_R: Tensor,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss, and each position's cross-entropy and KL in nats.

    Args:
        hidden_RD: Final hidden states after the last norm, [R, D].
        head: From these to logits; its weight [V, D] and bias [V] get a gradient when they require one.
        targets_R: The token to predict at each position, int64 [R].
        weight_R: The weight of each position's cross-entropy, [R].
        reference: The base at the last G positions; None = no KL.

    Returns:
        The sum over positions of weighted losses (a float32 scalar with a gradient), cross-entropies
        [R] and KLs [R] (float32, detached; KLs are zero where there is no reference). For float64 hidden states
        all three are float64.
    """
    return _LinearLosses.apply(hidden_RD, head.weight_VD, head.bias_V, head, targets_R, weight_R, reference)


class _LinearLosses(torch.autograd.Function):
    """Forward computes the gradients too, while a chunk's logits are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        hidden_RD, weight_VD, bias_V, head, targets_R, weight_R, reference = inputs
        # The head in the hidden states' type: fp32 masters of a trained head under bf16 compute.
        head = dataclasses.replace(head, weight_VD=weight_VD.to(hidden_RD.dtype))
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        wide = torch.float64 if hidden_RD.dtype == torch.float64 else torch.float32
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=wide) if wants_bias and bias_V is not None else None
        ce_R = torch.empty(len(hidden_RD), dtype=wide, device=hidden_RD.device)
        kl_R = torch.zeros_like(ce_R)
        with torch.autocast(hidden_RD.device.type, enabled=False):
            for chunk, part in _chunks(len(hidden_RD), reference):
                hidden_CD, targets_C, weight_C = hidden_RD[chunk], targets_R[chunk], weight_R[chunk].to(wide)
                if part is None:
                    ce_R[chunk], grad_CV = _ce_chunk(head, hidden_CD, targets_C)
                    after_C1 = weight_C[:, None]  # on [C, D] instead of [C, V]
                else:
                    ce_R[chunk], kl_R[chunk], grad_CV = _kl_chunk((head, hidden_CD), targets_C, weight_C, part)
                    after_C1 = None
                grad_CV = grad_CV.to(hidden_RD.dtype)
                if grad_hidden_RD is not None:
                    grad_CD = grad_CV @ head.weight_VD
                    grad_hidden_RD[chunk] = grad_CD if after_C1 is None else grad_CD * after_C1
                if grad_weight_VD is not None:
                    scaled_CD = hidden_CD if after_C1 is None else (hidden_CD * after_C1).to(hidden_CD.dtype)
                    grad_weight_VD += grad_CV.T @ scaled_CD
                if grad_bias_V is not None:
                    grad_bias_V += (grad_CV if after_C1 is None else grad_CV * after_C1).sum(0)
        ctx.save_for_backward(grad_hidden_RD, grad_weight_VD, grad_bias_V)
        ctx.head_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(ce_R, kl_R)
        loss = (ce_R * weight_R).sum()
        if reference is not None:
            loss += (kl_R[len(kl_R) - len(reference.weight_G) :] * reference.weight_G).sum()
        return loss, ce_R, kl_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = (None if grad is None else grad * grads[0] for grad in ctx.saved_tensors)
        weight = weight.to(ctx.head_dtype) if weight is not None else None
        bias = bias.to(ctx.head_dtype) if bias is not None else None
        return (hidden if hidden is None else hidden.to(ctx.saved_tensors[0].dtype)), weight, bias, *[None] * 4


def _chunks(num_positions: int, reference: Reference | None) -> Iterator[tuple[slice, Reference | None]]:
    """Positions chunk by chunk, first those without a reference; with each, what the base says there."""
    first = num_positions - (0 if reference is None else len(reference.hidden_GD))
    for start in range(0, first, CHUNK_POSITIONS):
        yield slice(start, min(start + CHUNK_POSITIONS, first)), None
    if reference is None:
        return
    for start in range(first, num_positions, CHUNK_POSITIONS):
        chunk = slice(start, start + CHUNK_POSITIONS)
        of_them = slice(start - first, start - first + CHUNK_POSITIONS)
        yield (
            chunk,
            dataclasses.replace(
                reference,
                hidden_GD=reference.hidden_GD[of_them].detach(),
                weight_G=reference.weight_G[of_them],
            ),
        )


def _ce_chunk(head: Head, hidden_CD: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropies [C], and their gradients by the head's product [C, V]."""
    logits_CV = head.logits_CV(hidden_CD)
    slopes_CV = head.slopes_CV(logits_CV)
    grad_CV = torch.log_softmax(logits_CV, dim=-1)
    del logits_CV
    ce_C = -grad_CV.gather(1, targets_C[:, None])[:, 0]
    grad_CV.exp_()
    _subtract_at(grad_CV, targets_C, torch.ones_like(ce_C))
    return ce_C, _by_product(grad_CV, head, slopes_CV)


def _kl_chunk(
    model: tuple[Head, Tensor], targets_C: Tensor, weight_C: Tensor, reference: Reference
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropies [C], KLs [C], and the gradients [C, V] of both, weighted, by the head's product."""
    head, hidden_CD = model
    logits_CV = head.logits_CV(hidden_CD)
    slopes_CV = head.slopes_CV(logits_CV)
    grad_CV = torch.log_softmax(logits_CV, dim=-1)
    del logits_CV
    ce_C = -grad_CV.gather(1, targets_C[:, None])[:, 0]
    log_q_CV = torch.log_softmax(reference.head.logits_CV(reference.hidden_GD.to(hidden_CD.dtype)), dim=-1)
    q_CV = log_q_CV.exp()
    kl_C = log_q_CV.sub_(grad_CV).mul_(q_CV).sum(-1)
    kl_weight_C1 = reference.weight_G[:, None].to(grad_CV.dtype)
    grad_CV.exp_().mul_(weight_C[:, None] + kl_weight_C1).sub_(q_CV.mul_(kl_weight_C1))
    _subtract_at(grad_CV, targets_C, weight_C)
    return ce_C, kl_C, _by_product(grad_CV, head, slopes_CV)


def _subtract_at(grad_CV: Tensor, targets_C: Tensor, amount_C: Tensor) -> None:
    grad_CV.scatter_add_(1, targets_C[:, None], -amount_C[:, None].to(grad_CV.dtype))


def _by_product(grad_CV: Tensor, head: Head, slopes_CV: Tensor | None) -> Tensor:
    """From gradients by the logits to gradients by the product of weight and hidden states."""
    if slopes_CV is not None:
        return grad_CV.mul_(slopes_CV)
    return grad_CV if head.factor == 1.0 else grad_CV.mul_(head.factor)
