"""What a dry run says, against what a run does: counts exactly, kept activations within a stated share; and what does
not fit is refused before it is loaded."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockexpand.checkpoint import open_checkpoint, read_header
from blockexpand.errors import CorpusError, LiveError, TrainingError
from blockexpand.expansion.cost import RunCost, state_per_process
from blockexpand.live.forward import RowBatch, hidden_states
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import (
    DataSettings,
    FullArm,
    LoraArm,
    OldBlocksArm,
    RetentionSettings,
    TrainSettings,
)
from blockexpand.training import check_run, load_model, train
from blockexpand.training import preview as preview_module
from blockexpand.training.arms import arm_of
from blockexpand.training.computation import recompute_blocks
from blockexpand.training.preview import check_fits, device_bytes, keeps_gradients
from blockexpand.training.processes import World
from lm_helpers import make_expanded
from training_ground import Ground

ROW = 32
ALONE = World(device=torch.device("cpu"))


def cost_of(settings: TrainSettings) -> RunCost:
    cost = check_run(settings).cost
    assert cost is not None
    return cost


def test_counts_are_those_of_the_run(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run", retention=RetentionSettings(replay=0.25))
    found, record = check_run(settings), train(settings)
    cost = found.cost
    assert cost is not None
    assert found.num_steps == record.num_steps
    assert found.domain_tokens + found.general_tokens == record.num_tokens
    assert cost.num_trained_parameters == record.num_trainable_parameters
    assert cost.num_parameters == record.num_parameters
    assert (cost.num_blocks, cost.num_trained_blocks) == (6, 2)
    assert found.domain_tokens == found.num_steps * 3 * ROW
    saved = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    sizes = [e.num_bytes for p in saved.glob("*.safetensors") for e in read_header(p).tensors.values()]
    assert cost.checkpoint_bytes == pytest.approx(sum(sizes), rel=0.01)  # counts of steps are in the files, too


@pytest.mark.parametrize(
    "arm", [FullArm(kind="full"), LoraArm(kind="lora", rank=2), OldBlocksArm(kind="old-blocks", blocks=(1, 3))]
)
def test_other_arms_train_as_many_parameters_as_was_said(ground: Ground, tmp_path: Path, arm: Any) -> None:
    settings = ground.settings(tmp_path / "run", model=str(ground.base), arm=arm, domain_tokens=4 * ROW)
    assert cost_of(settings).num_trained_parameters == train(settings).num_trainable_parameters


def test_memory_is_the_plans(ground: Ground, tmp_path: Path) -> None:
    """In the checkpoint's own type what is kept whatever the rows is the plan's figure."""
    cost = cost_of(ground.settings(tmp_path, precision="auto"))
    assert cost.state_bytes == read_expansion(ground.expanded).plan.cost.training_memory_bytes


def kept_bytes(settings: TrainSettings) -> int:
    """What one pass of the real model keeps for its backward pass, weights and their copies left out."""
    dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
    trainee = arm_of(settings.arm).load(Path(settings.model), dtype, False)
    recompute_blocks(trainee.model, settings.recompute)
    shapes = {tuple(p.shape) for p in trainee.model.parameters()}
    shapes |= {tuple(reversed(shape)) for shape in shapes}
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tuple(tensor.shape) not in shapes:
            held.append(tensor)  # so that no address is used twice
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens_NT = torch.randint(200, (settings.rows_per_pass, ROW)).numpy()
    positions_NT = torch.arange(ROW).repeat(settings.rows_per_pass, 1).numpy()
    batch = RowBatch.of(tokens_NT, positions_NT, tokens_NT >= 0, torch.device("cpu"))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast:
        hidden_states(trainee.model, batch)
    return sum(kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", ["none", "new", "from-first-new"])
def test_activations_are_about_what_a_pass_keeps(
    ground: Ground, tmp_path: Path, precision: Any, recompute: Any
) -> None:
    settings = ground.settings(tmp_path, precision=precision, recompute=recompute)
    again = 0 if recompute == "none" else largest_block(settings)
    assert cost_of(settings).row_bytes * settings.rows_per_pass == pytest.approx(kept_bytes(settings) + again, rel=0.25)


def largest_block(settings: TrainSettings) -> int:
    """What a new block keeps while it is run again: the difference that keeping one makes."""
    plain = dataclasses.replace(settings, recompute="none")
    new = dataclasses.replace(settings, recompute="new")
    width = 2 if settings.precision == "bfloat16" else 4
    per_block = (kept_bytes(plain) - kept_bytes(new)) // 2
    return per_block + width * 32 * settings.rows_per_pass * ROW


def test_what_a_run_keeps_is_what_it_holds(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run", precision="bfloat16")
    parameters = dict(load_model(ground.expanded, torch.bfloat16).named_parameters())
    new = [p for name, p in parameters.items() if name.startswith(("model.layers.2.", "model.layers.5."))]
    num_new, num_all = (sum(p.numel() for p in some) for some in (new, parameters.values()))
    held = cost_of(settings)
    assert held.state_bytes == 2 * (num_all - num_new) + 16 * num_new
    outer = sum(p.numel() for name, p in parameters.items() if ".layers." not in name)
    assert held.gathered_bytes == 2 * (outer + num_new)
    assert held.memory_bytes(4, 2) < held.memory_bytes(4, 1) + held.gathered_bytes
    full = ground.settings(
        tmp_path, arm=FullArm(kind="full"), precision="float32", retention=RetentionSettings(replay=0.5)
    )
    assert cost_of(full).state_bytes == (16 + 4) * num_all
    matrices = sum(p.numel() for n, p in load_model(ground.base, torch.bfloat16).named_parameters()
                   if ".layers." in n and p.ndim == 2)  # fmt: skip
    for kind, saved in (("int8", 1.0), ("nf4", 2 - 0.5625)):
        some = cost_of(ground.settings(tmp_path, precision="bfloat16", base_precision=kind))
        assert held.state_bytes - some.state_bytes == saved * matrices


def test_a_run_that_cannot_fit_is_refused_with_what_would_do(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ground.settings(tmp_path / "run")
    check_fits(settings, ALONE)
    assert device_bytes(ALONE) // 2 == device_bytes(World(device=ALONE.device, local_size=2))
    cost = cost_of(settings)
    for_three = state_per_process(cost.state_bytes, cost.gathered_bytes, 3)
    monkeypatch.setattr(preview_module, "device_bytes", lambda _world: for_three)
    with pytest.raises(TrainingError, match="start 3 processes"):
        train(settings)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(preview_module, "device_bytes", lambda _world: cost.gathered_bytes)
    with pytest.raises(TrainingError, match="smaller model"):
        check_fits(settings, ALONE)
    monkeypatch.setattr(preview_module, "device_bytes", lambda _world: 80 * 10**9)
    assert keeps_gradients(1_700_000_000, ALONE)  # eight new blocks of an 8B
    assert not keeps_gradients(8_000_000_000, ALONE)


def test_a_plan_and_a_checkpoint_that_disagree_are_refused(ground: Ground, tmp_path: Path) -> None:
    """A folder with another's record: its plan says five blocks, its files hold six."""
    other = make_expanded(tmp_path / "other", ground.base, blocks=1)
    mixed = tmp_path / "mixed"
    shutil.copytree(ground.expanded, mixed)
    shutil.copy(other / "blockexpand.json", mixed / "blockexpand.json")
    with pytest.raises(LiveError, match=r"6 blocks"):
        train(ground.settings(tmp_path / "run", model=str(mixed)))


def test_what_deserves_a_word_gets_one_and_what_cannot_run_is_refused(ground: Ground, tmp_path: Path) -> None:
    many = check_run(ground.settings(tmp_path, domain_tokens=10**6))
    assert [str(round(many.domain_epochs)) in warning.replace(",", "") for warning in many.warnings] == [True]
    few = check_run(ground.settings(tmp_path, measure_every_steps=500))
    assert len(few.warnings) == 2
    assert "500" in few.warnings[1]
    with pytest.raises(TrainingError, match="8 processes"):
        check_run(ground.settings(tmp_path), 8)
    with pytest.raises(CorpusError, match="nowhere"):
        check_run(ground.settings(tmp_path, data=DataSettings(domain="nowhere")))
    assert open_checkpoint(ground.expanded).config["vocab_size"] == 320
