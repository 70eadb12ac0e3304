"""What a dry run says, against what a run does: counts exactly, kept activations within a stated share."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockexpand.checkpoint import open_checkpoint, read_header
from blockexpand.errors import CorpusError, RecordError, TrainingError
from blockexpand.live.forward import RowBatch, hidden_states
from blockexpand.records.expansion import read_expansion
from blockexpand.records.run import DataSettings, FullArm, LoraArm, OldBlocksArm, RetentionSettings, TrainSettings
from blockexpand.training import Devices, forecast, train
from blockexpand.training.arms import arm_of
from blockexpand.training.computation import recompute_blocks
from training_ground import Ground

ROW = 32


def test_counts_are_those_of_the_run(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run", retention=RetentionSettings(replay=0.25, kl_weight=1.0))
    found, record = forecast(settings), train(settings)
    assert found.num_steps == record.num_steps
    assert found.domain_tokens + found.general_tokens == record.num_tokens
    assert found.num_trained_parameters == record.num_trainable_parameters
    assert found.num_parameters == record.num_parameters
    assert (found.num_blocks, found.num_trained_blocks) == (6, 2)
    assert found.domain_tokens == found.num_steps * 3 * ROW
    assert found.domain_epochs > 0
    saved = sorted((tmp_path / "run/checkpoints").iterdir())[-1]
    sizes = [e.num_bytes for p in saved.glob("*.safetensors") for e in read_header(p).tensors.values()]
    assert found.checkpoint_bytes == pytest.approx(sum(sizes), rel=0.01)  # counts of steps are in the files, too


@pytest.mark.parametrize(
    "arm", [FullArm(kind="full"), LoraArm(kind="lora", rank=2), OldBlocksArm(kind="old-blocks", blocks=(1, 3))]
)
def test_other_arms_train_as_many_parameters_as_was_said(ground: Ground, tmp_path: Path, arm: Any) -> None:
    settings = ground.settings(tmp_path / "run", model=str(ground.base), arm=arm)
    assert forecast(settings).num_trained_parameters == train(settings).num_trainable_parameters


def test_arithmetic_is_the_plans(ground: Ground, tmp_path: Path) -> None:
    plain = forecast(ground.settings(tmp_path))
    cost = read_expansion(ground.expanded).plan.cost
    # The plan counts attention at 64 tokens, the model's longest; rows have 32.
    fewer_keys = 4 * 32 * (64 - ROW) // 2
    first = min(read_expansion(ground.expanded).plan.new_positions)
    per_token = cost.training_flops_per_token - (6 + 2 * (6 - first)) * fewer_keys
    assert plain.flops == per_token * plain.domain_tokens
    assert plain.reference_flops == 0
    asked = forecast(ground.settings(tmp_path, retention=RetentionSettings(replay=0.5, kl_weight=1.0)))
    assert asked.reference_flops == (cost.forward_flops_per_token_before - 4 * fewer_keys) * asked.general_tokens


def test_full_training_is_three_forward_passes(ground: Ground, tmp_path: Path) -> None:
    whole = forecast(ground.settings(tmp_path, arm=FullArm(kind="full")))
    some = forecast(ground.settings(tmp_path))
    assert whole.flops > some.flops
    cost = read_expansion(ground.expanded).plan.cost
    assert whole.flops == 3 * (cost.forward_flops_per_token_after - 6 * 4 * 32 * (64 - ROW) // 2) * whole.domain_tokens


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
    found, vocabulary = forecast(settings), open_checkpoint(ground.expanded).config["vocab_size"]
    logits = 4 * 3 * settings.rows_per_pass * ROW * vocabulary
    again = 0 if recompute == "none" else largest_block(settings)
    expected = kept_bytes(settings) + again
    assert found.activation_bytes - logits == pytest.approx(expected, rel=0.25)


def largest_block(settings: TrainSettings) -> int:
    """What a new block keeps while it is run again: the difference that keeping one makes."""
    plain = dataclasses.replace(settings, recompute="none")
    new = dataclasses.replace(settings, recompute="new")
    width = 2 if settings.precision == "bfloat16" else 4
    per_block = (kept_bytes(plain) - kept_bytes(new)) // 2
    return per_block + width * 32 * settings.rows_per_pass * ROW


def test_more_processes_hold_less_and_take_less_time(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path)
    one, four = forecast(settings), forecast(settings, Devices(number=4, peak_tflops=100.0, mfu=0.5))
    assert four.state_bytes < one.state_bytes
    assert one.hours == pytest.approx(one.flops / (989e12 * 0.4) / 3600)
    assert four.hours == pytest.approx(one.flops / (4 * 100e12 * 0.5) / 3600)


def test_refused(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="rows_per_step is 4, and there are 8 processes"):
        forecast(ground.settings(tmp_path), Devices(number=8))
    with pytest.raises(CorpusError, match="nowhere is not a prepared corpus"):
        forecast(ground.settings(tmp_path, data=DataSettings(domain="nowhere")))
    with pytest.raises(RecordError, match="mfu"):
        Devices(mfu=1.5)
    with pytest.raises(RecordError, match="processes"):
        Devices(number=0)
    with pytest.raises(RecordError, match="peak_tflops"):
        Devices(peak_tflops=0)
