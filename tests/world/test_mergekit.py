"""mergekit itself, in an environment of its own: an expanded folder as the input of a merge, and what comes out.

MERGEKIT names its `mergekit-yaml`; without it nothing here runs. What a merge has to give is known beforehand: with
weights 1 and 0 it is the first input, and with the old blocks alone it is the base, both bit for bit.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.staging import RECORD_NAME
from packs_ground import make_trained
from world_ground import AFTER, PROMPTS, World, logits_of, offline

PROGRAM = os.environ.get("MERGEKIT")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="MERGEKIT names no mergekit-yaml")


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with new blocks in the same places that were moved elsewhere."""
    return make_trained(world.base, tmp_path_factory.mktemp("mergekit") / "other", 1, by=0.1, after=AFTER)


def merged(out: Path, recipe: dict[str, Any]) -> Path:
    """What mergekit makes of the recipe, its tokenizer along."""
    assert PROGRAM is not None
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**recipe, "dtype": "bfloat16"}))
    environment = offline() | {"PYTHONPATH": ""}
    done = subprocess.run(
        [PROGRAM, str(path), str(out)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (out / RECORD_NAME).exists(), "a merge is no expansion of the base"
    return out


def linear(world: World, other: Path, weights: Sequence[float]) -> dict[str, Any]:
    models = [
        {"model": str(model), "parameters": {"weight": weight}}
        for model, weight in zip((world.grown, other), weights, strict=True)
    ]
    return {"merge_method": "linear", "models": models}


def assert_same_model(world: World, found: Path, expected: Path) -> None:
    """The same tensors, byte for byte, and in transformers the same logits and the same text."""
    digests = [{n: d.digest for n, d in digest_tensors(open_checkpoint(f)).items()} for f in (found, expected)]
    assert digests[0] == digests[1]
    one, two = world.model(found), world.model(expected)
    for prompt in PROMPTS:
        tokens_BT = world.tokens(prompt)
        assert torch.equal(logits_of(one, tokens_BT), logits_of(two, tokens_BT))


def test_with_weights_1_and_0_it_is_the_first_input(world: World, other: Path, tmp_path: Path) -> None:
    found = merged(tmp_path / "first", linear(world, other, (1.0, 0.0)))
    assert_same_model(world, found, world.grown)


def test_with_weights_0_and_1_it_is_the_second(world: World, other: Path, tmp_path: Path) -> None:
    assert_same_model(world, merged(tmp_path / "second", linear(world, other, (0.0, 1.0))), other)


def test_the_mean_of_two_moves_the_new_blocks_alone(world: World, other: Path, tmp_path: Path) -> None:
    found = world.model(merged(tmp_path / "mean", linear(world, other, (0.5, 0.5)))).state_dict()
    one, two = world.model().state_dict(), world.model(other).state_dict()
    new = {block.position for block in world.plan.new_blocks}
    moved = set()
    for name, tensor in one.items():
        mean = ((tensor + two[name]) / 2).bfloat16().float()
        torch.testing.assert_close(found[name], mean, rtol=2**-7, atol=1e-6, msg=name)
        if not torch.equal(found[name], tensor):
            moved.add(int(name.split(".")[2]))
    assert moved == new


def test_the_old_blocks_alone_are_the_base(world: World, tmp_path: Path) -> None:
    ranges = old_ranges(world)
    assert len(ranges) > 1
    slices = [{"sources": [{"model": str(world.grown), "layer_range": list(one)}]} for one in ranges]
    found = merged(tmp_path / "base", {"merge_method": "passthrough", "slices": slices})
    assert_same_model(world, found, world.base)


def old_ranges(world: World) -> list[tuple[int, int]]:
    """The old blocks of the expanded stack as ranges (from, until)."""
    new = {block.position for block in world.plan.new_blocks}
    ranges: list[tuple[int, int]] = []
    for at in (at for at in range(world.plan.num_blocks) if at not in new):
        if ranges and ranges[-1][1] == at:
            ranges[-1] = (ranges[-1][0], at + 1)
        else:
            ranges.append((at, at + 1))
    return ranges
