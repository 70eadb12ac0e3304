"""Linear cross-entropy and KL in chunks, so that [tokens, vocabulary] logits never exist whole.

In: final hidden states, the head's weight, targets; for retention also the base's hidden states at the
same places. Out: one loss per position, and exact gradients for the hidden states and, where it is
trained, the head. Memory: one chunk of logits, whatever the number of tokens.

Both losses are cross-entropies with a target distribution q, so one pass serves both:
d/dlogits of a CE(onehot, p) + b KL(ref || p) is (a + b) p - a onehot - b ref.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# R = positions that count, C = positions of one chunk, D = hidden size, V = vocabulary.

CHUNK_POSITIONS = 512
"""Positions of one chunk: 256 to 512 were fastest on CPU (../docs/log.md); [512, 128k] fp32 is 262 MB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """What the base says at the same positions."""

    hidden_RD: Tensor
    head_VD: Tensor
    weight_R: Tensor
    """Of the KL at each position."""


def linear_losses(
    hidden_RD: Tensor,
    head_VD: Tensor,
    targets_R: Tensor,
    weight_R: Tensor,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted loss, and each position's cross-entropy and KL in nats.

    Args:
        hidden_RD: Final hidden states after the last norm, [R, D].
        head_VD: The output projection's weight, [V, D]; gets a gradient when it requires one.
        targets_R: The token to predict at each position, int64 [R].
        weight_R: The weight of each position's cross-entropy, [R].
        reference: The base at the same positions; None = no KL.

    Returns:
        The sum over positions of weighted losses (a float32 scalar with a gradient), cross-entropies
        [R] and KLs [R] (float32, detached; KLs are zero without a reference).
    """
    if reference is None:
        empty = hidden_RD.new_empty(0)
        return _LinearLosses.apply(hidden_RD, head_VD, targets_R, weight_R, empty, empty, empty)
    parts = (reference.hidden_RD.detach(), reference.head_VD.detach(), reference.weight_R)
    return _LinearLosses.apply(hidden_RD, head_VD, targets_R, weight_R, *parts)


def _log_probs_CV(hidden_CD: Tensor, head_VD: Tensor) -> Tensor:
    return functional.log_softmax((hidden_CD @ head_VD.T).float(), dim=-1)


class _LinearLosses(torch.autograd.Function):
    """Forward computes the gradients too, while a chunk's logits are at hand; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden_RD, head_VD, targets_R, weight_R, ref_hidden_RD, ref_head_VD, kl_weight_R = inputs
        # The head in the hidden states' type: fp32 masters of a trained head under bf16 compute.
        head = head_VD.to(hidden_RD.dtype)
        ref_head = ref_head_VD.to(hidden_RD.dtype)
        num_positions = len(hidden_RD)
        wants_hidden, wants_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_hidden_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_head_VD = torch.zeros_like(head_VD, dtype=torch.float32) if wants_head else None
        ce_R = torch.empty(num_positions, dtype=torch.float32, device=hidden_RD.device)
        kl_R = torch.zeros_like(ce_R)
        with torch.autocast(hidden_RD.device.type, enabled=False):
            for start in range(0, num_positions, CHUNK_POSITIONS):
                chunk = slice(start, start + CHUNK_POSITIONS)
                hidden_CD, targets_C1, weight_C1 = (
                    hidden_RD[chunk],
                    targets_R[chunk, None],
                    weight_R[chunk, None],
                )
                log_p_CV = _log_probs_CV(hidden_CD, head)
                ce_R[chunk] = -log_p_CV.gather(1, targets_C1)[:, 0]
                grad_CV = log_p_CV.exp()
                if len(ref_hidden_RD):
                    log_q_CV = _log_probs_CV(ref_hidden_RD[chunk].to(hidden_RD.dtype), ref_head)
                    q_CV = log_q_CV.exp()
                    kl_R[chunk] = (q_CV * (log_q_CV - log_p_CV)).sum(-1)
                    kl_weight_C1 = kl_weight_R[chunk, None]
                    grad_CV.mul_(weight_C1 + kl_weight_C1).addcmul_(q_CV, kl_weight_C1, value=-1.0)
                else:
                    grad_CV.mul_(weight_C1)
                grad_CV.scatter_add_(1, targets_C1, -weight_C1.expand_as(targets_C1).float())
                grad_CV = grad_CV.to(hidden_RD.dtype)
                if grad_hidden_RD is not None:
                    grad_hidden_RD[chunk] = grad_CV @ head
                if grad_head_VD is not None:
                    grad_head_VD += (grad_CV.T @ hidden_CD).float()
        ctx.save_for_backward(grad_hidden_RD, grad_head_VD)
        ctx.head_dtype = head_VD.dtype
        ctx.mark_non_differentiable(ce_R, kl_R)
        loss = (ce_R * weight_R).sum()
        return (loss + (kl_R * kl_weight_R).sum() if len(ref_hidden_RD) else loss), ce_R, kl_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_RD, grad_head_VD = ctx.saved_tensors
        scale = grads[0]
        hidden = grad_hidden_RD * scale if grad_hidden_RD is not None else None
        head = (grad_head_VD * scale).to(ctx.head_dtype) if grad_head_VD is not None else None
        return hidden, head, None, None, None, None, None
