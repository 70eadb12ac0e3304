"""The cost's formulas against counts made by hand, and against torch's own counter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blockexpand.checkpoint import open_checkpoint
from blockexpand.expansion import backward_flops, expand, forward_flops, plan, survey
from blockexpand.live import expand_live, freeze
from helpers import KNOWN_SHAPES, MakeBase, shape_only, tiny_model

# The tiny Llama by hand: hidden 32, 4 heads of 8, 2 key-value heads, 48 inside the MLP, 96 words, 128 tokens.
MATRICES = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48
BLOCK = MATRICES + 2 * 32
HEAD = 96 * 32
ATTENTION = 4 * 32 * (128 + 1) // 2


def test_parameters_and_bytes_by_hand(tiny_base: MakeBase):
    cost = plan(tiny_base("llama"), 2).cost
    assert cost.parameters_before == 2 * HEAD + 32 + 4 * BLOCK
    assert cost.parameters_new == 2 * BLOCK
    assert cost.parameters_after == cost.parameters_before + 2 * BLOCK
    assert cost.weights_bytes_before == 2 * cost.parameters_before == open_checkpoint(tiny_base("llama")).num_bytes
    assert cost.weights_bytes_after == 2 * cost.parameters_after
    assert cost.training_memory_bytes == 2 * cost.parameters_before + 16 * 2 * BLOCK


def test_arithmetic_by_hand(tiny_base: MakeBase):
    cost = plan(tiny_base("llama"), 2).cost
    assert cost.context_tokens == 128
    forward = 2 * MATRICES + ATTENTION
    assert cost.forward_flops_per_token_before == 4 * forward + 2 * HEAD
    assert cost.forward_flops_per_token_after == 6 * forward + 2 * HEAD
    assert cost.full_training_flops_per_token == 3 * cost.forward_flops_per_token_before
    # New blocks at 2 and 5 of 6: the head and blocks 2 to 5 pass the gradient down, two take weight
    # gradients.
    passing = 2 * HEAD + 4 * (2 * MATRICES + 2 * ATTENTION)
    assert cost.training_flops_per_token == cost.forward_flops_per_token_after + passing + 2 * 2 * MATRICES


def test_a_deeper_checkpoint_costs_to_train_what_its_plan_said(tiny_base: MakeBase, tmp_path: Path):
    base, made = tiny_base("llama"), plan(tiny_base("llama"), 2)
    expand(base, tmp_path / "deeper", made)
    deeper = open_checkpoint(tmp_path / "deeper")
    facts, new = survey(deeper), made.new_positions
    forward = forward_flops(facts, deeper.config, 128, range(6))
    assert forward == made.cost.forward_flops_per_token_after
    assert forward_flops(facts, deeper.config, 128, made.old_to_new) == made.cost.forward_flops_per_token_before
    backward = backward_flops(facts, deeper.config, 128, new, min(new))
    assert forward + backward == made.cost.training_flops_per_token
    # Through a shorter context: the keys that a token sees on average are (64 + 1) / 2.
    assert forward_flops(facts, deeper.config, 64, range(6)) == forward - 6 * (ATTENTION - 4 * 32 * (64 + 1) // 2)
    # Adapters in every block: nothing takes a weight gradient, all blocks pass it down.
    passing = 2 * HEAD + 6 * (2 * MATRICES + 2 * ATTENTION)
    assert backward_flops(facts, deeper.config, 128, (), 0) == passing


def test_a_tied_head_costs_arithmetic_and_no_parameters(tiny_base: MakeBase):
    tied = plan(tiny_base("llama", tie_word_embeddings=True), 2).cost
    untied = plan(tiny_base("llama"), 2).cost
    assert tied.parameters_before == untied.parameters_before - HEAD
    assert tied.forward_flops_per_token_before == untied.forward_flops_per_token_before


def test_biases_and_stored_buffers_cost_what_they_cost(tiny_base: MakeBase):
    with_bias = plan(tiny_base("llama", attention_bias=True), 1).cost
    without = plan(tiny_base("llama"), 1).cost
    assert with_bias.parameters_new == without.parameters_new + 32 + 16 + 16 + 32
    assert with_bias.forward_flops_per_token_after == without.forward_flops_per_token_after


def test_a_long_context_is_counted_at_the_papers_length():
    assert plan(shape_only("qwen3-8b", KNOWN_SHAPES["qwen3-8b"]), 1).cost.context_tokens == 4096


@pytest.mark.parametrize("placement", ["interleaved", "prefix", "suffix"])
def test_the_matrix_products_are_what_torch_counts(tiny_base: MakeBase, placement: str):
    """Without attention, whose causal half torch does not count; forward and backward, new blocks trained."""
    made = plan(tiny_base("llama"), 2, placement=placement)
    model = expand_live(tiny_model("llama"), made)
    freeze(model)
    # The writers must have moved, or autograd still computes everything; it does not skip zeros.
    tokens = torch.arange(64)[None] % 96
    with FlopCounterMode(display=False) as counter:
        model(tokens, use_cache=False).logits.float().sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(v for op, v in counts.items() if "scaled_dot" not in str(op) and "bmm" not in str(op))
    new, depth = 2, 6
    passing = depth - min(made.new_positions)
    expected = 2 * (depth * MATRICES + HEAD) + 2 * (passing * MATRICES + HEAD) + 2 * new * MATRICES
    assert products == 64 * expected
    attention = made.cost.forward_flops_per_token_after + 2 * passing * ATTENTION - 2 * (depth * MATRICES + HEAD)
    assert made.cost.training_flops_per_token == expected + attention
