"""The model without a block, against doing it by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blockexpand.families import known_families
from blockexpand.families.modules import load_model, stack_of
from blockexpand.guidance.skipping import Passes
from helpers import tiny_model

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
import zoo

TOKENS = torch.tensor([[5, 17, 3, 60, 41, 8, 22, 90, 11, 2, 33, 7], [9, 4, 71, 30, 2, 1, 56, 77, 13, 61, 8, 20]])


@torch.no_grad()
def test_a_skipped_block_is_a_block_that_was_never_there():
    """Bit for bit the logits of a model from whose stack the block was taken out."""
    whole = tiny_model(blocks=4)
    passes = Passes(whole, list(whole.model.layers), TOKENS)
    assert torch.equal(passes.logits_BTV, whole(TOKENS, use_cache=False).logits)
    for i in range(4):
        shorter = tiny_model(blocks=4)
        del shorter.model.layers[i]
        shorter.config.num_hidden_layers = 3
        expected = shorter(TOKENS, use_cache=False).logits
        assert torch.equal(passes.without(i), expected)
        assert not torch.equal(expected, passes.logits_BTV)
    # The model is as it was.
    assert torch.equal(passes.logits_BTV, whole(TOKENS, use_cache=False).logits)
    assert not any("forward" in vars(block) for block in whole.model.layers)


@torch.no_grad()
def test_what_enters_and_leaves_each_block_is_what_transformers_says():
    model = tiny_model(blocks=3)
    passes = Passes(model, list(model.model.layers), TOKENS)
    states = model(TOKENS, use_cache=False, output_hidden_states=True).hidden_states
    for i in range(3):
        assert torch.equal(passes.inputs_BTD[i], states[i])
    for i in range(2):  # the last one's output is only given after the last norm
        assert torch.equal(passes.outputs_BTD[i], states[i + 1])
    assert torch.equal(model.model.norm(passes.outputs_BTD[2]), states[3])


def test_the_model_is_whole_again_after_an_error():
    model = tiny_model(blocks=2)
    passes = Passes(model, list(model.model.layers), TOKENS)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("out of memory")

    model.lm_head.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        passes.without(1)
    assert not any("forward" in vars(block) for block in model.model.layers)


def by_hand(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """A hook that lets a block run and then hands on what entered it."""
    hidden = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


FAMILIES = ("gpt2", "bloom", "falcon", "mamba", "jamba", "gemma3_text", "phimoe", "qwen3_next", "mistral3")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_kind_of_stack_can_be_skipped_through(name: str, tmp_path: Path):
    """Blocks that give tuples, mixtures, state spaces, a text stack inside a larger model."""
    skips_by_hand_are_ours(next(row for row in zoo.ZOO if row.family == name), tmp_path)


def skips_by_hand_are_ours(row: zoo.Case, folder: Path) -> None:
    family = known_families()[row.family]
    model = load_model(zoo.write(row, folder / "base"), dtype=torch.float32, loader=family.loader)
    model.requires_grad_(False)
    blocks = list(stack_of(model, family))
    passes = Passes(model, blocks, TOKENS)
    for i, block in enumerate(blocks):
        hook = block.register_forward_hook(by_hand, with_kwargs=True)
        expected = model(input_ids=TOKENS, use_cache=False).logits
        hook.remove()
        assert torch.equal(passes.without(i), expected), f"{row.id}: block {i}"
