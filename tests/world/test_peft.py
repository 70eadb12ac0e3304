"""PEFT's LoRA on top of an expanded folder: on every block, and on the new ones only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from world_ground import PROMPTS, World, logits_of


@pytest.mark.parametrize("where", ["new and old", "new"])
def test_lora_trains_merges_and_reloads(world: World, tmp_path: Path, where: str) -> None:
    new = list(world.plan.new_positions)
    layers = new if where == "new" else [*new, 0]
    settings = LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], layers_to_transform=layers, task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    model = get_peft_model(world.model(), settings)
    adapters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in adapters} == set(layers)
    tokens_BT = world.tokens(PROMPTS[1])
    before_BTV = logits_of(model, tokens_BT)
    assert torch.equal(before_BTV, logits_of(world.model(), tokens_BT))
    losses = _train(model, tokens_BT)
    assert losses[-1] < losses[0]
    after_BTV = logits_of(model, tokens_BT)
    assert not torch.allclose(before_BTV, after_BTV, atol=1e-2)

    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(world.model(), tmp_path / "adapter")
    assert torch.equal(logits_of(again, tokens_BT), after_BTV)

    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = world.model(tmp_path / "merged")
    torch.testing.assert_close(logits_of(merged, tokens_BT), after_BTV, atol=1e-3, rtol=1e-4)
    _check_what_moved(world, merged, layers)


def _train(model: torch.nn.Module, tokens_BT: torch.Tensor) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=tokens_BT, labels=tokens_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _check_what_moved(world: World, merged: torch.nn.Module, layers: list[int]) -> None:
    old, now = world.model().state_dict(), merged.state_dict()
    assert set(old) == set(now)
    moved = {name for name in old if not torch.equal(old[name], now[name])}
    tails = ("self_attn.q_proj", "mlp.down_proj")
    assert moved == {f"model.layers.{n}.{tail}.weight" for n in layers for tail in tails}
