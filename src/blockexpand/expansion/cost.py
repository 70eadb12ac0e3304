"""What a deeper stack costs: parameters, bytes, and arithmetic, before and after.

In: a survey and the places of the new blocks. Out: a frozen `Cost`. Every formula is stated where it is used
and checked by hand in the tests; multiplications and additions count as one operation each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blockexpand.checkpoint import num_bytes, num_elements
from blockexpand.expansion.survey import Survey
from blockexpand.families import matches_any, tail_matches
from blockexpand.records.plan import BlockTensor, Cost

DEFAULT_CONTEXT_TOKENS = 4096
"""The sequence length at which attention is counted: LLaMA Pro trains with it (PAPER.md 2)."""
TRAINED_BYTES_PER_PARAMETER = 16
"""An fp32 master, an fp32 gradient and Adam's two fp32 moments."""


def cost(survey: Survey, config: dict[str, Any], sources: Sequence[int], positions: Sequence[int]) -> Cost:
    """The cost of a stack of copies of these old blocks, those at `positions` being new."""
    text = survey.family.text(config)
    outer_parameters = sum(e.num_elements for name, e in survey.outer.items() if name not in survey.tied)
    old, new = range(survey.depth), [sources[position] for position in positions]
    base_parameters = outer_parameters + sum(_parameters(survey, block) for block in old)
    new_parameters = sum(_parameters(survey, block) for block in new)
    base_bytes = sum(e.num_bytes for e in survey.outer.values()) + sum(_bytes(survey, block) for block in old)
    longest = text.get("max_position_embeddings")
    stated = type(longest) is int and longest > 0
    context = min(DEFAULT_CONTEXT_TOKENS, longest) if stated else DEFAULT_CONTEXT_TOKENS
    counting = _Counting(survey=survey, config=text, context=context)
    forward_before = counting.head() + sum(counting.block(block) for block in old)
    forward_after = counting.head() + sum(counting.block(block) for block in sources)
    return Cost(
        parameters_before=base_parameters,
        parameters_new=new_parameters,
        parameters_after=base_parameters + new_parameters,
        weights_bytes_before=base_bytes,
        weights_bytes_after=base_bytes + sum(_bytes(survey, block) for block in new),
        training_memory_bytes=base_bytes + new_parameters * TRAINED_BYTES_PER_PARAMETER,
        context_tokens=context,
        forward_flops_per_token_before=forward_before,
        forward_flops_per_token_after=forward_after,
        training_flops_per_token=forward_after + counting.backward(sources, positions, min(positions)),
        full_training_flops_per_token=3 * forward_before,
    )


def forward_flops(survey: Survey, config: dict[str, Any], context: int, blocks: Sequence[int]) -> int:
    """Operations of one token on its way through these blocks and the head, in rows of `context` tokens."""
    counting = _Counting(survey=survey, config=survey.family.text(config), context=context)
    return counting.head() + sum(counting.block(block) for block in blocks)


def backward_flops(survey: Survey, config: dict[str, Any], context: int, trained: Sequence[int], first: int) -> int:
    """Operations of one token's gradients, in rows of `context` tokens.

    Args:
        survey: of the checkpoint that trains, new blocks included.
        config: the content of its config.json.
        context: the length of a row.
        trained: the blocks whose weights take a gradient; of the head and the embeddings none is counted.
        first: the lowest block that is differentiated.
    """
    counting = _Counting(survey=survey, config=survey.family.text(config), context=context)
    return counting.backward(range(survey.depth), trained, first)


def _parameters(survey: Survey, block: int) -> int:
    return sum(num_elements(t.shape) for t in survey.tensors_of(block) if t.parameter)


def _bytes(survey: Survey, block: int) -> int:
    return sum(num_bytes(t.dtype, t.shape) for t in survey.tensors_of(block))


@dataclass(frozen=True, kw_only=True)
class _Counting:
    """Arithmetic on one token."""

    survey: Survey
    config: dict[str, Any]
    context: int

    def head(self) -> int:
        """2 for each element of the output head; a tied head is its source's shape."""
        outer = self.survey.family.outer
        sources = {t.tensor: t.source for t in outer.tied}
        names = [name if name in self.survey.outer else sources[name] for name in outer.matrices]
        return sum(2 * self.survey.outer[name].num_elements for name in names)

    def matrices(self, block: int) -> int:
        """2 for each element of a block's matrices that a token uses; gains and biases are too few to count."""
        return sum(self._matrix(block, t) for t in self.survey.tensors_of(block) if t.parameter and len(t.shape) > 1)

    def _matrix(self, block: int, tensor: BlockTensor) -> int:
        elements, experts = 2 * num_elements(tensor.shape), self.survey.family.block.experts
        if experts is None or not matches_any(experts.tensors, tensor.tail):
            return elements
        used = self.config.get(experts.used_key)
        used = used if type(used) is int and used > 0 else experts.used_default
        if len(tensor.shape) > 2:
            return elements * used // tensor.shape[0]
        pattern = next(p for p in experts.tensors if tail_matches(p, tensor.tail))
        held = sum(tail_matches(pattern, t.tail) for t in self.survey.tensors_of(block))
        return elements * used // held

    def attention(self, block: int) -> int:
        """One block's scores and weighted values.

        4 for each of heads * head width and each of the (T + 1) / 2 keys that a token sees on average under a
        causal mask. A sliding window would see fewer, and a state-space mixer costs some; neither is counted.
        """
        tails = self.survey.family.block.attention_output
        width = sum(t.shape[1] for t in self.survey.tensors_of(block) if t.tail in tails)
        return 2 * width * (self.context + 1)

    def block(self, block: int) -> int:
        """One block's forward pass."""
        return self.matrices(block) + self.attention(block)

    def backward(self, sources: Sequence[int], positions: Sequence[int], first: int) -> int:
        """Gradients that training only the blocks at `positions` needs, when the lowest to be reached is `first`.

        The head and every block from the first one on pass the gradient down: as much again as their forward
        matrices, and twice the forward attention (four products for two). Only those blocks take weight gradients:
        as much again as their matrices. Below the first nothing is differentiated.
        """
        passing = sum(self.matrices(block) + 2 * self.attention(block) for block in sources[first:])
        return self.head() + passing + sum(self.matrices(sources[position]) for position in positions)
