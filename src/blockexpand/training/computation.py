"""How blocks are run: compiled, and what of their activations is kept for the backward pass.

In: a model whose trainable parameters are switched on. Out: the same object; its blocks' forward is compiled,
recomputed in the backward pass, or both. Values and gradients are those of the plain model: recomputing is
bit-identical, compiling within rounding.

What trains decides what there is to save. Nothing below the first block that trains is differentiated, so
nothing is kept there and nothing is recomputed there; no hook asks the embeddings for a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from blockexpand.live.parts import blocks_of
from blockexpand.records.run import Recompute


def compile_blocks(model: PreTrainedModel) -> None:
    """Compile block by block: all blocks of one kind share the compiled code, and bypassing leaves it valid."""
    blocks = blocks_of(model)
    # One entry for each of: training, measuring, a last pass of fewer rows, the reference; and for old and new blocks.
    limits = vars(torch._dynamo)["config"]  # typed as the literals of its defaults
    limits.recompile_limit = max(limits.recompile_limit, 8 * len(blocks))
    for block in blocks:
        _put_forward(block, torch.compile(block.forward))


def recompute_blocks(model: PreTrainedModel, policy: Recompute) -> int:
    """Have blocks run again in the backward pass; how many do. Call it after `compile_blocks`.

    The compiled code is what runs again, so compiling changes no bit between the policies.
    """
    chosen = recomputed(blocks_of(model), policy)
    for block in chosen:
        _put_forward(block, _Recomputed(block.forward))
    return len(chosen)


def recomputed(blocks: list[nn.Module], policy: Recompute) -> list[nn.Module]:
    """The blocks that a policy recomputes."""
    trains = [any(parameter.requires_grad for parameter in block.parameters()) for block in blocks]
    if policy == "none" or not any(trains):
        return []
    if policy == "new":
        return [block for block, new in zip(blocks, trains, strict=True) if new]
    return blocks[trains.index(True) :]


class _Recomputed:
    """A block's forward under torch's non-reentrant checkpoint: hooks on the block (FSDP's, say) stay outside."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        """Wrap `forward`, bound to its block."""
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; without gradients (measuring, the base as reference) as it is."""
        if not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        return checkpoint(self._forward, *args, use_reentrant=False, **kwargs)


def _put_forward(block: nn.Module, forward: Callable[..., Any]) -> None:
    """An attribute of the instance, which nn.Module calls in the place of its class's method."""
    vars(block)["forward"] = forward
