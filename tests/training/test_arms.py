"""Arms: exactly what they say trains, the reference is the base, and what is shipped is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blockexpand.checkpoint import Checkpoint, TensorEntry
from blockexpand.errors import LiveError, TrainingError
from blockexpand.records.run import ArmSettings, BlocksArm, FullArm, LoraArm, OldBlocksArm
from blockexpand.training.arms import Trainee, _check_shippable, arm_of, load_model, nearest_rank
from blockexpand.training.export import export_model
from training_ground import Ground

ARMS: dict[str, ArmSettings] = {
    "blocks": BlocksArm(),
    "full": FullArm(kind="full"),
    "old": OldBlocksArm(kind="old-blocks", blocks=(1, 3)),
    "lora": LoraArm(kind="lora", rank=2),
}
PER_BLOCK = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
TOKENS = torch.arange(5, 25)[None]


def load(ground: Ground, name: str, dtype: torch.dtype = torch.float32) -> tuple[Path, Trainee]:
    folder = ground.expanded if name == "blocks" else ground.base
    return folder, arm_of(ARMS[name]).load(folder, dtype, needs_reference=True)


def moved(trainee: Trainee) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(trainee.trainable.values()):
            torch.manual_seed(number)
            parameter.add_(torch.randn_like(parameter) * 0.05)


def test_what_trains_is_exactly_what_the_arm_says(ground: Ground) -> None:
    numbers = {name: sum(p.numel() for p in load(ground, name)[1].trainable.values()) for name in ARMS}
    whole = sum(p.numel() for p in load_model(ground.base, torch.float32).parameters())
    assert numbers["blocks"] == numbers["old"] == 2 * PER_BLOCK
    assert numbers["full"] == whole
    assert numbers["lora"] == 4 * 2 * (4 * 32 + 2 * (32 + 16) + 3 * (32 + 48))
    names = load(ground, "old")[1].trainable
    assert {name.split(".")[2] for name in names} == {"1", "3"}


@pytest.mark.parametrize("name", sorted(ARMS))
def test_only_that_requires_a_gradient_and_in_float32(ground: Ground, name: str) -> None:
    _, trainee = load(ground, name, torch.bfloat16)
    wanting = {n for n, p in trainee.model.named_parameters() if p.requires_grad}
    assert wanting == set(trainee.trainable)
    assert {p.dtype for p in trainee.trainable.values()} == {torch.float32}
    frozen = {p.dtype for p in trainee.model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16}


@pytest.mark.parametrize("name", sorted(ARMS))
def test_the_reference_is_the_base_however_far_the_arm_has_moved(ground: Ground, name: str) -> None:
    base = load_model(ground.base, torch.float32)
    _, trainee = load(ground, name)
    with torch.no_grad():
        expected = base(TOKENS).logits
        assert torch.equal(trainee.model(TOKENS).logits, expected)
        moved(trainee)
        assert not torch.equal(trainee.model(TOKENS).logits, expected)
        with trainee.reference() as reference:
            assert torch.equal(reference(TOKENS).logits, expected)
        assert not torch.equal(trainee.model(TOKENS).logits, expected)


@pytest.mark.parametrize("name", sorted(ARMS))
def test_what_is_shipped_is_what_was_trained_and_the_rest_is_untouched(
    ground: Ground, name: str, tmp_path: Path
) -> None:
    folder, trainee = load(ground, name)
    moved(trainee)
    tensors = trainee.tensors(trainee.trainable)
    export_model(folder, tmp_path / "model", tensors, {"arm": name})
    before, after = (dict(load_model(f, torch.bfloat16).named_parameters()) for f in (folder, tmp_path / "model"))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == set(tensors)
    for tensor_name, tensor in tensors.items():
        assert torch.equal(after[tensor_name], tensor.bfloat16())
    shipped = load_model(tmp_path / "model", torch.float32)
    with torch.no_grad():
        ours, theirs = trainee.model(TOKENS).logits, shipped(TOKENS).logits
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)
    assert not torch.allclose(ours, load_model(folder, torch.float32)(TOKENS).logits, rtol=0.1, atol=0.1)


def test_the_writers_of_the_new_blocks_are_known(ground: Ground) -> None:
    _, trainee = load(ground, "blocks")
    assert {name.split("layers.")[1] for name in trainee.writers} == {
        f"{position}.{tail}" for position in (2, 5) for tail in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    }
    assert all((trainee.trainable[name] == 0).all() for name in trainee.writers)


def test_lora_can_be_sized_by_its_parameters(ground: Ground) -> None:
    layers = load_model(ground.base, torch.float32).get_decoder().layers  # type: ignore[operator]
    per_rank = 4 * (4 * 32 + 2 * (32 + 16) + 3 * (32 + 48))
    assert nearest_rank(layers, 5 * per_rank + 10) == 5
    assert nearest_rank(layers, 1) == 1
    arm = arm_of(LoraArm(kind="lora", trainable_parameters=3 * per_rank))
    trainee = arm.load(ground.base, torch.float32, needs_reference=False)
    assert sum(p.numel() for p in trainee.trainable.values()) == 3 * per_rank


@pytest.mark.parametrize("blocks", [(0, 4), (-1,), ()])
def test_old_blocks_that_are_not_there_are_refused(ground: Ground, blocks: tuple[int, ...]) -> None:
    arm = arm_of(OldBlocksArm(kind="old-blocks", blocks=blocks))
    with pytest.raises(TrainingError, match=rf"arm.blocks: {str(list(blocks)).replace('[', '.').replace(']', '.')}"):
        arm.load(ground.base, torch.float32, needs_reference=False)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LiveError, match="transformers cannot load"):
        load_model(tmp_path, torch.float32)


def test_tensors_that_are_not_in_the_checkpoint_are_refused(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="has no such tensor for model.odd.weight; expected shape"):
        export_model(ground.base, tmp_path / "o", {"model.odd.weight": torch.zeros(2)}, {})
    with pytest.raises(TrainingError, match=r"has BF16\[32\] for model.norm.weight; expected shape \[3\]"):
        export_model(ground.base, tmp_path / "o", {"model.norm.weight": torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_blocks_that_could_not_be_written_back_are_refused_before_the_first_step():
    checkpoint = Checkpoint(
        source="my/model",
        folder=Path("nowhere"),
        config={},
        tensors={"a": TensorEntry(file="f", dtype="F8_E4M3", shape=(2,), start=0, end=2)},
        metadata={},
        sharded=False,
    )
    with pytest.raises(TrainingError, match=r"my/model has F8_E4M3 \[2\] for the new block's a, .*float weights"):
        _check_shippable(checkpoint, {"a": torch.zeros(2)})
    with pytest.raises(TrainingError, match="my/model has no such tensor for the new block's b"):
        _check_shippable(checkpoint, {"b": torch.zeros(2)})
