"""Recomputing and compiling: the same gradients, fewer activations kept, nothing done below the first new block."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockexpand import live
from blockexpand.expansion import verify
from blockexpand.live.forward import hidden_states, isolates
from blockexpand.live.loss import linear_losses
from blockexpand.live.parts import blocks_of, head_of
from blockexpand.records.run import RetentionSettings, read_metrics
from blockexpand.training import train
from blockexpand.training.arms import Blocks, Lora, Trainee
from blockexpand.training.computation import compile_blocks, recompute_blocks
from blockexpand.training.data import open_data
from blockexpand.training.processes import World
from training_ground import Ground

WORLD = World(device=torch.device("cpu"))
POLICIES: tuple[Any, ...] = ("none", "new", "from-first-new")
KEEPING = RetentionSettings(replay=0.5, kl_weight=0.5, forgetting_budget=0.05)


def trainee_of(ground: Ground, precision: torch.dtype = torch.float32) -> Trainee:
    """New blocks at 2 and 5 of six, moved away from the identity so that every tensor gets a gradient."""
    trainee = Blocks().load(ground.expanded, precision, needs_reference=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for name in sorted(trainee.writers):
            trainee.trainable[name].normal_(std=0.02)
    return trainee


def backward(ground: Ground, trainee: Trainee, folder: Path, *, autocast: bool = False) -> dict[str, Tensor]:
    batch = open_data(ground.settings(folder), WORLD).passes(0)[0].batch
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden_RD = batch.predicting(hidden_states(trainee.model, batch))
    linear_losses(hidden_RD, head_of(trainee.model), batch.targets_R, torch.ones(len(hidden_RD)))[0].backward()
    gradients = {name: p.grad for name, p in trainee.trainable.items() if p.grad is not None}
    assert gradients.keys() == trainee.trainable.keys()
    return gradients


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_recomputed_gradients_are_the_plain_ones_to_the_bit(
    ground: Ground, tmp_path: Path, policy: Any, autocast: bool
) -> None:
    dtype = torch.bfloat16 if autocast else torch.float32
    plain, again = trainee_of(ground, dtype), trainee_of(ground, dtype)
    assert recompute_blocks(again.model, policy) == {"new": 2, "from-first-new": 4}[policy]
    theirs, ours = (backward(ground, t, tmp_path, autocast=autocast) for t in (plain, again))
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())


def kept_bytes(trainee: Trainee, run: Callable[[], Any]) -> int:
    """Bytes of distinct storages that autograd keeps for the backward pass, the model's own tensors left out."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in trainee.model.state_dict().values()}
    kept: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)  # so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


def test_fewer_activations_are_kept(ground: Ground, tmp_path: Path) -> None:
    batch = open_data(ground.settings(tmp_path), WORLD).passes(0)[0].batch
    found = {}
    for policy in POLICIES:
        trainee = trainee_of(ground)
        recompute_blocks(trainee.model, policy)
        outside = sum(1 for block in blocks_of(trainee.model) if "forward" not in vars(block))
        found[policy] = kept_bytes(trainee, lambda model=trainee.model: hidden_states(model, batch))
        assert outside == {"none": 6, "new": 4, "from-first-new": 2}[policy]
    # The input of each recomputed block is kept, [4, 32, 32] float32; a whole block keeps tens of these.
    block_input = batch.tokens_BT.numel() * 32 * 4
    assert found["from-first-new"] < found["new"] < found["none"]
    assert found["from-first-new"] < 8 * block_input
    assert found["none"] > 40 * block_input


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_below_the_first_new_block_is_differentiated_or_run_twice(
    ground: Ground, tmp_path: Path, policy: Any
) -> None:
    trainee = trainee_of(ground)
    assert isolates(trainee.model)  # the probe's own passes are over before runs are counted
    runs: dict[int, int] = dict.fromkeys(range(6), 0)
    gradients: dict[int, bool] = {}
    for index, block in enumerate(blocks_of(trainee.model)):
        norm = block.get_submodule("input_layernorm")
        norm.register_forward_hook(lambda _m, _i, _o, index=index: runs.update({index: runs[index] + 1}))
        block.register_forward_hook(lambda _m, _i, out, index=index: gradients.update({index: out.requires_grad}))
    recompute_blocks(trainee.model, policy)
    backward(ground, trainee, tmp_path)
    assert gradients == {0: False, 1: False, 2: True, 3: True, 4: True, 5: True}
    twice = {"none": set(), "new": {2, 5}, "from-first-new": {2, 3, 4, 5}}[policy]
    assert runs == {index: 2 if index in twice else 1 for index in range(6)}
    assert not trainee.model.get_input_embeddings()._forward_hooks


def test_the_base_inside_is_still_the_base_when_blocks_are_recomputed(ground: Ground, tmp_path: Path) -> None:
    batch = open_data(ground.settings(tmp_path), WORLD).passes(0)[0].batch
    plain, again = trainee_of(ground), trainee_of(ground)
    recompute_blocks(again.model, "from-first-new")
    for trainee in (plain, again):
        trainee.model.requires_grad_(False)
    with live.bypass(plain.model), live.bypass(again.model):
        ours, theirs = (hidden_states(t.model, batch) for t in (again, plain))
    assert torch.equal(ours, theirs)


def test_other_arms_recompute_what_trains_in_them(ground: Ground) -> None:
    lora = Lora(rank=2, trainable_parameters=None).load(ground.base, torch.float32, needs_reference=False)
    assert recompute_blocks(lora.model, "from-first-new") == 4


def test_a_run_that_recomputes_ends_with_the_same_bytes(ground: Ground, tmp_path: Path) -> None:
    for name, recompute in (("plain", "none"), ("again", "from-first-new")):
        train(ground.settings(tmp_path / name, retention=KEEPING, recompute=recompute))
    plain, again = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / n / "metrics.jsonl")]
        for n in ("plain", "again")
    )
    assert again == plain
    weights = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("plain", "again")]
    assert weights[0] == weights[1]
    assert verify(ground.base, tmp_path / "again" / "model").passed


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_recompute_to_the_same_bits(ground: Ground, tmp_path: Path) -> None:
    plain, compiled, again = trainee_of(ground), trainee_of(ground), trainee_of(ground)
    for trainee in (compiled, again):
        compile_blocks(trainee.model)
    recompute_blocks(again.model, "from-first-new")
    expected, once, twice = (backward(ground, t, tmp_path) for t in (plain, compiled, again))
    for name, gradient in expected.items():
        assert torch.equal(once[name], twice[name])
        torch.testing.assert_close(once[name], gradient, rtol=1e-3, atol=1e-5)
