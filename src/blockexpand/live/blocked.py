"""Causal attention on the CPU, block by block of queries, over the keys that some query of the block sees.

In: queries, keys and values as transformers hands them to an attention function, and its mask of true and false.
Out: the same numbers as torch's `scaled_dot_product_attention` to rounding, with the same memory: probabilities are
made again in the backward pass and never exist whole. What no query of a block may see is not computed, so a row of
many documents costs what they cost apart. Scores and their softmax are float32; the other products are in the type
of arithmetic, as in torch's own. Why it exists: that one is three times slower than the products it is made of on a
CPU (benchmarks/train.py; docs/log.md).
Refused: dropout, soft caps, sinks and masks of numbers: `UnsupportedAttentionError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

# B = rows, H = query heads, G = key heads, R = query heads of one key head, T = tokens, D = size of a head,
# N = rows of one span times key heads, Q = queries of one span (times R), K = keys of one span.

NAME = "blockexpand_blocked"
"""What transformers calls it."""
BLOCK_QUERIES = 64
"""Queries of one block: 64 and 128 were quickest of 64 to 512 (docs/log.md)."""


class UnsupportedAttentionError(ValueError):
    """The family asks for something that attention in blocks does not do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Span:
    """A block of queries of some rows, and the keys between the first and the last that one of them sees."""

    rows: slice
    queries: slice
    keys: slice
    hidden_BQK: Tensor
    """bool [rows or 1, queries, last keys]: what a query may not see; the keys before these are seen by all."""


def register() -> None:
    """Make it known to transformers, by `NAME`; its masks are those of `sdpa`."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention_forward(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: [B, H, T, D], [B, G, T, D] twice, bool [B, 1, T, T] -> [B, T, H, D].

    With a cache, where there are more keys than queries, it is torch's own.

    Raises:
        UnsupportedAttentionError: for what a family may ask and this does not do.
    """
    if query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    _check(module, attention_mask, options)
    scaling = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    out_BTHD = attend(query, key, value, attention_mask, scale)
    differences = _WITNESS.get()
    if differences is None:
        return out_BTHD, None
    theirs_BTHD, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    moved = (out_BTHD.float() - theirs_BTHD.float()).abs().max() / theirs_BTHD.abs().max()
    differences.append(moved.item())
    return theirs_BTHD, None


_WITNESS: ContextVar[list[float] | None] = ContextVar("witness", default=None)


@contextmanager
def witnessed() -> Generator[list[float]]:
    """Inside, each call is also made by torch's own attention, whose result goes on; the list gets how far ours is
    from it, over the largest of it.
    """
    differences: list[float] = []
    token = _WITNESS.set(differences)
    try:
        yield differences
    finally:
        _WITNESS.reset(token)


def _check(module: torch.nn.Module, mask: Tensor | None, options: dict[str, Any]) -> None:
    asked = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if options.get("dropout"):
        asked.append("dropout")
    if mask is not None and mask.dtype != torch.bool:
        asked.append("a mask of numbers")
    if mask is None and not options.get("is_causal", getattr(module, "is_causal", True)):
        asked.append("attention that is not causal")
    if asked:
        raise UnsupportedAttentionError(f"attention in blocks does not do: {', '.join(asked)}")


@torch.compiler.disable
def attend(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask_B1TT: Tensor | None, scale: float) -> Tensor:
    """Attention [B, T, H, D]; without a mask each query sees the keys up to its own."""
    device = q_BHTD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q_BHTD.dtype
    with torch.autocast(device, enabled=False):
        return _Blocked.apply(q_BHTD, k_BGTD, v_BGTD.to(dtype), mask_B1TT, scale)


def _spans(rows: int, tokens: int, mask_B1TT: Tensor | None, device: torch.device) -> Iterator[_Span]:
    blocks = [slice(start, min(start + BLOCK_QUERIES, tokens)) for start in range(0, tokens, BLOCK_QUERIES)]
    if mask_B1TT is None:
        later_1QQ = torch.ones(1, BLOCK_QUERIES, BLOCK_QUERIES, dtype=torch.bool, device=device).triu_(1)
        for block in blocks:
            length = block.stop - block.start
            hidden_BQK = later_1QQ[:, :length, :length]
            yield _Span(rows=slice(0, rows), queries=block, keys=slice(0, block.stop), hidden_BQK=hidden_BQK)
        return
    mask_BTT = mask_B1TT.expand(rows, -1, -1, -1)[:, 0]
    for block in blocks:
        seen_BT = mask_BTT[:, block].any(1)
        # The largest index of the largest value, and the same from the other end; a block that sees nothing: all.
        firsts = seen_BT.int().argmax(1).tolist()
        lasts = (tokens - seen_BT.flip(1).int().argmax(1)).tolist()
        for row in range(rows):
            keys = slice(firsts[row], lasts[row])
            hidden_QK = ~mask_BTT[row, block, keys]
            yield _Span(rows=slice(row, row + 1), queries=block, keys=keys, hidden_BQK=hidden_QK[None])


class _Blocked(torch.autograd.Function):
    """Attention over spans; the probabilities are made again in backward."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q_BHTD, k_BGTD, v_BGTD, mask_B1TT, scale = inputs
        rows, heads, tokens, _ = q_BHTD.shape
        groups = k_BGTD.shape[1]
        q_BGRTD, k_BGTD32, v_BGTD = _grouped(q_BHTD.float() * scale, groups), k_BGTD.float(), v_BGTD.contiguous()
        out_BTHD = v_BGTD.new_empty(rows, tokens, heads, v_BGTD.shape[-1])
        out_BGRTD = _grouped_view(out_BTHD, groups)
        for span in _spans(rows, tokens, mask_B1TT, q_BHTD.device):
            p_NQK = _probabilities(q_BGRTD, k_BGTD32, span).to(v_BGTD.dtype)
            _put(out_BGRTD, span, torch.bmm(p_NQK, _keys(v_BGTD, span)))
        ctx.save_for_backward(q_BHTD, k_BGTD, v_BGTD, mask_B1TT, out_BTHD)
        ctx.scale = scale
        return out_BTHD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BGTD, v_BGTD, mask_B1TT, out_BTHD = ctx.saved_tensors
        dtype, groups = v_BGTD.dtype, k_BGTD.shape[1]
        rows, heads, tokens, size = q_BHTD.shape
        q_BGRTD, k_BGTD32 = _grouped(q_BHTD.float() * ctx.scale, groups), k_BGTD.float()
        q_low, k_low = q_BGRTD.to(dtype), (k_BGTD * ctx.scale).to(dtype).contiguous()
        grad_BTHD = grads[0].to(dtype)
        grad_BGRTD = _grouped(grad_BTHD.transpose(1, 2), groups)
        # Each query's sum over keys of probability times its gradient (arXiv 2205.14135, appendix B.2).
        inner_BTH1 = (grad_BTHD.float() * out_BTHD).sum(-1, keepdim=True)
        inner_BGRT1 = _grouped(inner_BTH1.transpose(1, 2), groups)
        dq_BTHD = q_BHTD.new_empty(rows, tokens, heads, size)
        dq_BGRTD = _grouped_view(dq_BTHD, groups)
        dk_BGTD, dv_BGTD = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k_BGTD, v_BGTD))
        for span in _spans(rows, tokens, mask_B1TT, q_BHTD.device):
            p_NQK, grad_NQD = _probabilities(q_BGRTD, k_BGTD32, span), _queries(grad_BGRTD, span)
            _keys(dv_BGTD, span).add_(torch.bmm(p_NQK.to(dtype).mT, grad_NQD))
            ds_NQK = torch.bmm(grad_NQD, _keys(v_BGTD, span).mT)
            ds_NQK = (ds_NQK - _queries(inner_BGRT1, span)).mul_(p_NQK).to(dtype)
            _put(dq_BGRTD, span, torch.bmm(ds_NQK, _keys(k_low, span)))
            _keys(dk_BGTD, span).add_(torch.bmm(ds_NQK.mT, _queries(q_low, span)))
        return dq_BTHD.transpose(1, 2), dk_BGTD.to(k_BGTD.dtype), dv_BGTD.to(dtype), None, None


def _grouped(x_BHTD: Tensor, groups: int) -> Tensor:
    """[B, G, R, T, D]: the heads that share a key head together, contiguous."""
    return x_BHTD.unflatten(1, (groups, -1)).contiguous()


def _grouped_view(x_BTHD: Tensor, groups: int) -> Tensor:
    """The same order of what is written as [B, T, H, D]: a view."""
    return x_BTHD.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4)


def _queries(x_BGRTD: Tensor, span: _Span) -> Tensor:
    """A span's queries, the heads that share a key head behind one another: [N, Q, D]."""
    part_BGRQD = x_BGRTD[span.rows, :, :, span.queries]
    return part_BGRQD.reshape(part_BGRQD.shape[0] * part_BGRQD.shape[1], -1, part_BGRQD.shape[-1])


def _put(x_BGRTD: Tensor, span: _Span, part_NQD: Tensor) -> None:
    """Write what `_queries` would give."""
    target_BGRQD = x_BGRTD[span.rows, :, :, span.queries]
    target_BGRQD.copy_(part_NQD.view(target_BGRQD.shape))


def _keys(x_BGTD: Tensor, span: _Span) -> Tensor:
    """A span's keys, [N, K, D]: a view."""
    return x_BGTD[span.rows, :, span.keys].flatten(0, 1)


def _probabilities(q_BGRTD: Tensor, k_BGTD: Tensor, span: _Span) -> Tensor:
    """float32 [N, Q, K] of scaled queries and keys in float32."""
    scores_NQK = torch.bmm(_queries(q_BGRTD, span), _keys(k_BGTD, span).mT)
    _, groups, shared, _, _ = q_BGRTD.shape
    num_queries, num_hidden = span.hidden_BQK.shape[1:]
    scores = scores_NQK.view(-1, groups, shared, num_queries, scores_NQK.shape[-1])
    scores[..., -num_hidden:].masked_fill_(span.hidden_BQK[:, None, None], _LEAST)
    return torch.softmax(scores_NQK, dim=-1)


_LEAST = torch.finfo(torch.float32).min
"""Of a key that is not seen: no share beside any other, and no NaN where a query sees nothing."""
