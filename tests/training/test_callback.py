"""The callback inside the real Trainer and TRL's SFTTrainer: what trains, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import blockexpand
from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import LiveError, PlanError, TrainingError
from blockexpand.live import expand_live
from blockexpand.training import BlockExpansionCallback
from lm_helpers import sentences
from training_ground import Ground

STEPS = 3


def arguments(out: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    } | changes


def rows(ground: Ground) -> Dataset:
    tokenizer = AutoTokenizer.from_pretrained(ground.base)
    tokens = [tokenizer(text)["input_ids"][:24] for text in sentences(20, 3)]
    same = [ids for ids in tokens if len(ids) == 24]
    return Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in same])


def trainer_of(ground: Ground, out: Path, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Trainer:
    model, _ = blockexpand.load(ground.expanded, dtype=dtype)
    callback = BlockExpansionCallback(ground.expanded, out / "blocks", save_every_steps=2)
    settings = TrainingArguments(**arguments(out, **changes))
    return Trainer(model=model, args=settings, train_dataset=rows(ground), callbacks=[callback])


def check_only_new_blocks_moved(ground: Ground, out: Path) -> None:
    """The finished folder has the old tensors' bytes, new blocks that have moved, and the base inside."""
    before, after = open_checkpoint(ground.expanded), open_checkpoint(out / "model")
    _, plan = blockexpand.load(out / "model")
    new = tuple(f"model.layers.{position}." for position in plan.new_positions)
    moved = 0
    for name, entry in before.tensors.items():
        same = bytes_of(before.folder / entry.file, entry) == bytes_of(after.folder / entry.file, after.tensors[name])
        assert same or name.startswith(new), f"{name} has changed"
        moved += not same
    assert moved >= 2 * len(new)
    assert blockexpand.verify(ground.base, out / "model").passed


def bytes_of(path: Path, entry: Any) -> bytes:
    return path.read_bytes()[entry.start : entry.end]


def test_in_trainer_exactly_the_new_blocks_train_and_the_base_stays_inside(ground: Ground, tmp_path: Path) -> None:
    trainer = trainer_of(ground, tmp_path)
    model, base = trainer.model, blockexpand.load(ground.expanded, torch.float32)[0]
    assert isinstance(model, nn.Module)
    trainer.train()
    check_only_new_blocks_moved(ground, tmp_path / "blocks")
    tokens_BT = torch.tensor([rows(ground)[0]["input_ids"]])
    model.eval()
    with torch.no_grad(), blockexpand.bypass(model), blockexpand.bypass(base):
        assert torch.equal(model(tokens_BT).logits, base(tokens_BT).logits)
    saved = load_file(tmp_path / "blocks/blocks-00000002/blocks.safetensors")
    assert set(saved) == {n for n, _ in trained_names(model)}
    assert [p.name for p in sorted((tmp_path / "blocks").iterdir())] == ["blocks-00000002", "model"]


def trained_names(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def test_in_bf16_the_new_blocks_are_float32_and_the_rest_is_not(ground: Ground, tmp_path: Path) -> None:
    trainer = trainer_of(ground, tmp_path, dtype=torch.bfloat16, bf16=True)
    trainer.train()
    assert isinstance(trainer.model, nn.Module)
    found = {p.requires_grad: p.dtype for p in trainer.model.parameters()}
    assert found == {True: torch.float32, False: torch.bfloat16}
    check_only_new_blocks_moved(ground, tmp_path / "blocks")


def test_in_trl(ground: Ground, tmp_path: Path) -> None:
    model, _ = blockexpand.load(ground.expanded)
    callback = BlockExpansionCallback(ground.expanded, tmp_path / "blocks")
    turns = [
        {"messages": [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text[20:40]}]}
        for text in sentences(12, 4)
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**arguments(tmp_path, max_length=48, save_strategy="steps", save_steps=STEPS)),
        train_dataset=Dataset.from_list(turns),
        processing_class=AutoTokenizer.from_pretrained(ground.base),
        callbacks=[callback],
    )
    trainer.train()
    check_only_new_blocks_moved(ground, tmp_path / "blocks")
    assert (tmp_path / f"blocks/blocks-{STEPS:08d}/blocks.safetensors").is_file()


def test_a_model_that_is_not_expanded_is_refused(ground: Ground, tmp_path: Path) -> None:
    callback = BlockExpansionCallback(ground.expanded, tmp_path)
    from helpers import load

    with pytest.raises(LiveError, match="not known to be expanded"):
        Trainer(model=load(ground.base), args=TrainingArguments(**arguments(tmp_path)), callbacks=[callback])


def test_a_folder_without_an_expansion_is_refused(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=str(ground.base)):
        BlockExpansionCallback(ground.base, tmp_path)


def test_a_model_of_another_plan_is_refused(ground: Ground, tmp_path: Path) -> None:
    from helpers import load

    model = expand_live(load(ground.base), blockexpand.plan(ground.base, 1))
    callback = BlockExpansionCallback(ground.expanded, tmp_path)
    with pytest.raises(TrainingError, match=f"another plan than {ground.expanded}"):
        Trainer(model=model, args=TrainingArguments(**arguments(tmp_path)), callbacks=[callback])


def test_bf16_parameters_without_autocast_are_refused(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the model is in bfloat16 and the trainer has bf16=False"):
        trainer_of(ground, tmp_path, dtype=torch.bfloat16)


def test_a_parameter_switched_on_besides_is_refused(ground: Ground, tmp_path: Path) -> None:
    trainer = trainer_of(ground, tmp_path)
    assert isinstance(trainer.model, nn.Module)
    trainer.model.get_parameter("model.norm.weight").requires_grad_(True)
    with pytest.raises(TrainingError, match="model.norm.weight trains, against the plan"):
        trainer.train()


def test_a_trainer_that_shards_is_refused(ground: Ground, tmp_path: Path) -> None:
    settings = TrainingArguments(**arguments(tmp_path))
    settings.fsdp = True
    model, _ = blockexpand.load(ground.expanded)
    callback = BlockExpansionCallback(ground.expanded, tmp_path)
    with pytest.raises(TrainingError, match="shards the model .fsdp=True"):
        callback.on_init_end(settings, None, None, model=model)  # ty: ignore[invalid-argument-type]
