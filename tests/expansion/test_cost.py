"""The cost's formulas against counts made by hand."""

from __future__ import annotations

from blockexpand.checkpoint import open_checkpoint
from blockexpand.expansion import plan
from helpers import MakeBase

# The tiny Llama by hand: hidden 32, 4 heads of 8, 2 key-value heads, 48 inside the MLP, 96 words.
BLOCK = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 48 + 2 * 32
HEAD = 96 * 32


def test_parameters_and_bytes_by_hand(tiny_base: MakeBase):
    cost = plan(tiny_base("llama"), 2).cost
    assert cost.parameters_before == 2 * HEAD + 32 + 4 * BLOCK
    assert cost.parameters_new == 2 * BLOCK
    assert cost.parameters_after == cost.parameters_before + 2 * BLOCK
    assert cost.weights_bytes_before == 2 * cost.parameters_before == open_checkpoint(tiny_base("llama")).num_bytes
    assert cost.weights_bytes_after == 2 * cost.parameters_after
    assert cost.training_memory_bytes == 2 * cost.parameters_before + 16 * 2 * BLOCK


def test_a_tied_head_costs_no_parameters_and_biases_cost_theirs(tiny_base: MakeBase):
    untied = plan(tiny_base("llama"), 1).cost
    assert plan(tiny_base("llama", tie_word_embeddings=True), 1).cost.parameters_before == (
        untied.parameters_before - HEAD
    )
    with_bias = plan(tiny_base("llama", attention_bias=True), 1).cost
    assert with_bias.parameters_new == untied.parameters_new + 32 + 16 + 16 + 32
