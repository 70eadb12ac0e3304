"""The demo's recipes: both resolve, fit the tiny base, and treat every method alike."""

from __future__ import annotations

import json

import pytest
from studies.tiny_base.general_text import SHARES

from blockexpand.demonstration.paths import BASE
from blockexpand.demonstration.recipe import DemoRecipe, load_demo
from blockexpand.records.run import BlocksArm, FullArm, LoraArm, OldBlocksArm

BOTH = pytest.mark.parametrize("full", [False, True], ids=["demo", "demo --full"])


def depth() -> int:
    return json.loads((BASE / "config.json").read_text())["num_hidden_layers"]


@BOTH
def test_the_new_blocks_are_a_quarter_to_a_half_of_the_old(full: bool) -> None:
    assert 0.25 <= load_demo(full).new_blocks / depth() <= 0.5


@BOTH
def test_all_four_methods_and_one_reference_compete(full: bool) -> None:
    arms = load_demo(full).arms
    assert [type(arm.arm) for arm in arms if not arm.unrestricted] == [BlocksArm, FullArm, LoraArm, OldBlocksArm]
    assert [type(arm.arm) for arm in arms if arm.unrestricted] == [FullArm]


@BOTH
def test_the_controls_have_the_size_of_the_new_blocks(full: bool) -> None:
    recipe = load_demo(full)
    config = json.loads((BASE / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shared = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    block = 2 * hidden * hidden + 2 * hidden * shared + 3 * hidden * inner + 2 * hidden
    for arm in recipe.arms:
        if isinstance(arm.arm, LoraArm):
            assert arm.arm.trainable_parameters == recipe.new_blocks * block
        if isinstance(arm.arm, OldBlocksArm):
            assert len(set(arm.arm.blocks)) == recipe.new_blocks
            assert max(arm.arm.blocks) < depth()


@BOTH
def test_general_text_is_divided_as_the_tiny_base_saw_it(full: bool) -> None:
    """Else the demo would rehearse, steer by and report on text that the base was trained on."""
    splits = load_demo(full).general.splits
    assert {name: split.share for name, split in splits.items()} == SHARES
    assert list(splits) == list(SHARES)
    assert [name for name, split in splits.items() if not split.write] == ["train"]


def test_full_means_three_seeds_and_a_sweep_of_rates() -> None:
    short, full = load_demo(False), load_demo(True)
    assert len(short.seeds) == 1
    assert len(full.seeds) == 3
    assert {len(arm.lrs) for arm in full.arms if not arm.unrestricted} >= {3}
    assert without(full) == without(short)


def without(recipe: DemoRecipe) -> tuple:
    """What must not differ: the rest of the story."""
    return recipe.new_blocks, recipe.domain, recipe.general, recipe.domain_tokens, recipe.retention
