"""accelerate's `device_map`: an expanded folder of which a part is on disk says the same, to the bit."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import infer_auto_device_map, init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM

from world_ground import World, logits_of


def test_blocks_on_disk_give_the_same_logits(world: World, tmp_path: Path) -> None:
    new = set(world.plan.new_positions)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    # Two of three blocks, so that old and new ones are on both sides.
    layers = {f"model.layers.{n}": "disk" if n % 3 else "cpu" for n in range(world.plan.num_blocks)}
    for kind in ("disk", "cpu"):
        there = {n for n in range(world.plan.num_blocks) if layers[f"model.layers.{n}"] == kind}
        assert there & new
        assert there - new
    model = AutoModelForCausalLM.from_pretrained(
        world.grown, dtype=torch.float32, device_map=places | layers, offload_folder=tmp_path / "offload"
    )
    on_disk = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    assert on_disk
    assert any(f"layers.{n}." in name for n in new for name in on_disk)
    tokens_BT = world.tokens()
    assert torch.equal(logits_of(model, tokens_BT), logits_of(world.model(), tokens_BT))


def test_a_device_map_made_by_memory_splits_no_block(world: World) -> None:
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(world.grown), dtype=torch.float32)
    model.tie_weights()
    weight = 4 * sum(p.numel() for p in model.parameters())
    places = infer_auto_device_map(
        model, max_memory={"cpu": weight // 2, "disk": weight}, no_split_module_classes=model._no_split_modules
    )
    layers = {name: where for name, where in places.items() if name.startswith("model.layers.")}
    assert set(layers) == {f"model.layers.{n}" for n in range(world.plan.num_blocks)}
    assert set(layers.values()) == {"cpu", "disk"}
