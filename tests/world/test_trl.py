"""TRL's SFTTrainer and `blockexpand.freeze` alone; with the callback it is in training/test_callback.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import blockexpand
from world_ground import World, logits_of

CHATS = [
    {"messages": [{"role": "user", "content": f"Who is number {n}?"}, {"role": "assistant", "content": f"Ann {n}."}]}
    for n in range(8)
]


@pytest.mark.parametrize("recompute", [True, False])
def test_only_the_new_blocks_train_in_sft(world: World, tmp_path: Path, recompute: bool) -> None:
    model, plan = blockexpand.load(world.grown, dtype=torch.float32)
    trainable = dict(blockexpand.freeze(model))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.1,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=recompute,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(CHATS), processing_class=world.tokenizer()
    )
    trainer.train()
    now = trainer.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], now[name])} == set(trainable)
    new = tuple(f"model.layers.{n}." for n in plan.new_positions)
    assert all(name.startswith(new) for name in trainable)
    # The base is still inside, bit for bit.
    tokens_BT = world.tokens()
    with blockexpand.bypass(model):
        assert torch.equal(logits_of(model, tokens_BT), logits_of(world.model(world.base), tokens_BT))
