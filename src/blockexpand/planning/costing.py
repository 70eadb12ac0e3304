"""What a deeper stack costs: parameters, bytes, and arithmetic, before and after.

In: a survey and the places of the new blocks. Out: a frozen `Cost`. Every formula is stated where it is used
and checked by hand in the tests; multiplications and additions count as one operation each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.checkpoint import num_bytes, num_elements
from blockexpand.planning.survey import Survey

DEFAULT_CONTEXT_TOKENS = 4096
"""The sequence length at which attention is counted: LLaMA Pro trains with it (PAPER.md 2)."""
TRAINED_BYTES_PER_PARAMETER = 16
"""An fp32 master, an fp32 gradient and Adam's two fp32 moments."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Figures for reading; nothing later depends on them."""

    parameters_before: int
    """Of the base; a tied head counts once."""
    parameters_new: int
    """Of the new blocks: what is trained."""
    parameters_after: int
    """Of the expanded model."""
    weights_bytes_before: int
    """The tensors of the base on disk, and in memory in its own dtype."""
    weights_bytes_after: int
    """The tensors of the expanded model."""
    training_memory_bytes: int
    """Frozen weights in the base's dtype, and 16 bytes for each new parameter: fp32 master, gradient and two
    moments. Activations, which depend on the batch, are not in it."""
    context_tokens: int
    """The sequence length at which attention is counted."""
    forward_flops_per_token_before: int
    """Of the base."""
    forward_flops_per_token_after: int
    """Of the expanded model."""
    training_flops_per_token: int
    """One step of training only the new blocks."""
    full_training_flops_per_token: int
    """One step of training the whole base, for comparison."""


def cost(survey: Survey, config: dict[str, Any], positions: Sequence[int]) -> Cost:
    """The cost of new blocks at these positions of the new stack."""
    block_parameters = sum(num_elements(t.shape) for t in survey.block if t.parameter)
    outer_parameters = sum(e.num_elements for name, e in survey.outer.items() if name not in survey.tied)
    base_parameters = outer_parameters + survey.depth * block_parameters
    block_bytes = sum(num_bytes(t.dtype, t.shape) for t in survey.block)
    base_bytes = sum(e.num_bytes for e in survey.outer.values()) + survey.depth * block_bytes
    new = len(positions)
    longest = config.get("max_position_embeddings")
    context = min(DEFAULT_CONTEXT_TOKENS, longest) if isinstance(longest, int) else DEFAULT_CONTEXT_TOKENS
    forward_before, forward_after = (_forward(survey, survey.depth + n, context) for n in (0, new))
    return Cost(
        parameters_before=base_parameters,
        parameters_new=new * block_parameters,
        parameters_after=base_parameters + new * block_parameters,
        weights_bytes_before=base_bytes,
        weights_bytes_after=base_bytes + new * block_bytes,
        training_memory_bytes=base_bytes + new * block_parameters * TRAINED_BYTES_PER_PARAMETER,
        context_tokens=context,
        forward_flops_per_token_before=forward_before,
        forward_flops_per_token_after=forward_after,
        training_flops_per_token=forward_after + _backward(survey, positions, context),
        full_training_flops_per_token=3 * forward_before,
    )


def _head_flops(survey: Survey) -> int:
    """2 for each element of the output head; a tied head is its source's shape."""
    outer = survey.family.outer
    sources = {t.tensor: t.source for t in outer.tied}
    names = [name if name in survey.outer else sources[name] for name in outer.matrices]
    return sum(2 * survey.outer[name].num_elements for name in names)


def _matrix_flops(survey: Survey) -> int:
    """2 for each element of a block's matrices; gains and biases are too few to count."""
    return sum(2 * num_elements(t.shape) for t in survey.block if t.parameter and len(t.shape) == 2)


def _attention_flops(survey: Survey, context: int) -> int:
    """One block's scores and weighted values.

    4 for each of heads * head width and each of the (T + 1) / 2 keys that a token sees on average under a
    causal mask. A sliding window would see fewer; that is not counted.
    """
    tail = survey.family.block.attention_output
    width = next(t.shape[1] for t in survey.block if t.tail == tail)
    return 2 * width * (context + 1)


def _forward(survey: Survey, depth: int, context: int) -> int:
    return depth * (_matrix_flops(survey) + _attention_flops(survey, context)) + _head_flops(survey)


def _backward(survey: Survey, positions: Sequence[int], context: int) -> int:
    """Gradients that training only the new blocks needs.

    The head and every block from the first new one on pass the gradient down: as much again as their forward
    matrices, and twice the forward attention (four products for two). Only new blocks take weight gradients:
    as much again as their matrices. Below the first new block nothing is differentiated.
    """
    depth = survey.depth + len(positions)
    num_passing = depth - min(positions)
    passing = num_passing * (_matrix_flops(survey) + 2 * _attention_flops(survey, context))
    return _head_flops(survey) + passing + len(positions) * _matrix_flops(survey)
