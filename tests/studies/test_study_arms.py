"""The arms of the studies: upscaled, moe, parallel; given to `train` as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from studies.arms import ARMS as KINDS
from studies.arms.moe import down_projection
from torch import nn

from blockexpand.errors import TrainingError
from blockexpand.expansion import expand, plan
from blockexpand.families import known_families
from blockexpand.live.generation import generate
from blockexpand.records.plan import Insertion
from blockexpand.records.run import CustomArm, Measurement, OptimizerSettings, RetentionSettings
from blockexpand.training import Arm, Trainee, load_model, load_shipped, shipped_folder, train
from blockexpand.training.export import export_model
from blockexpand.training.retention import is_better
from training_ground import Ground

TOKENS = torch.arange(5, 25)[None]
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "moe": ("moe", {}),
    "moe-copy": ("moe", {"start": "copy"}),
    "parallel": ("parallel", {"blocks": [1, 3], "share": 0.25}),
    "upscaled": ("upscaled", {}),
}


def arm_of(name: str) -> Arm:
    kind, options = OPTIONS[name]
    return KINDS[kind](**options)


def settings_of(name: str) -> CustomArm:
    kind, options = OPTIONS[name]
    return CustomArm(kind="custom", name=kind, options=options)


@pytest.fixture(scope="module")
def deeper(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks 0 1 2 1 2 3 of the base's 0 1 2 3, as SOLAR would have it."""
    folder = tmp_path_factory.mktemp("deeper") / "model"
    copies = [Insertion(after=2, donor=donor) for donor in (1, 2)]
    expand(ground.base, folder, plan(ground.base, after=copies, init="copy"))
    return folder


def load(ground: Ground, deeper: Path, name: str) -> tuple[Path, Trainee]:
    folder = deeper if name == "upscaled" else ground.base
    return folder, arm_of(name).load(folder, torch.float32, needs_reference=True)


def moved(trainee: Trainee) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(trainee.trainable.values()):
            torch.manual_seed(number)
            parameter.add_(torch.randn_like(parameter) * 0.05)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_reference_is_the_base_however_far_the_arm_has_moved(ground: Ground, deeper: Path, name: str) -> None:
    expected = load_model(ground.base, torch.float32)(TOKENS).logits
    _, trainee = load(ground, deeper, name)
    with torch.no_grad():
        before = trainee.model(TOKENS).logits
        assert torch.allclose(before, expected, atol=1e-5) == trainee.starts_as_base
        assert trainee.starts_as_base == (name in ("moe-copy", "parallel"))
        moved(trainee)
        with trainee.reference() as reference:
            assert torch.equal(reference(TOKENS).logits, expected)
        assert not torch.allclose(trainee.model(TOKENS).logits, before, atol=1e-4)


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_only_what_the_arm_says_requires_a_gradient(ground: Ground, deeper: Path, name: str) -> None:
    _, trainee = load(ground, deeper, name)
    assert {n for n, p in trainee.model.named_parameters() if p.requires_grad} == set(trainee.trainable)
    number = sum(p.numel() for p in trainee.trainable.values())
    per_block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32
    whole = sum(p.numel() for p in load_model(ground.base, torch.float32).parameters())
    moe = 4 * (32 * 48 + 2)
    assert number == {"moe": moe, "moe-copy": moe, "parallel": 2 * per_block, "upscaled": whole + 2 * per_block}[name]


def test_parallel_copies_begin_as_nothing_to_the_bit(ground: Ground, deeper: Path) -> None:
    _, trainee = load(ground, deeper, "parallel")
    base = load_model(ground.base, torch.float32)
    with torch.no_grad():
        assert torch.equal(trainee.model(TOKENS).logits, base(TOKENS).logits)


def test_parallel_blocks_generate_with_their_own_cache(ground: Ground, deeper: Path) -> None:
    _, trainee = load(ground, deeper, "parallel")
    moved(trainee)
    (cached,) = generate(trainee.model, TOKENS[:1, :4].tolist(), num_new=12, ends=[1])
    tokens = TOKENS[:1, :4]
    with torch.no_grad():
        while tokens.shape[1] < 4 + len(cached):
            best = trainee.model(tokens, use_cache=False).logits[:, -1].argmax(-1)
            tokens = torch.cat([tokens, best[:, None]], 1)
    assert tokens[0, 4:].tolist() == cached


def test_the_papers_moe_counts_the_old_projection_by_a_softmax(ground: Ground, deeper: Path) -> None:
    _, trainee = load(ground, deeper, "moe")
    base = load_model(ground.base, torch.float32)
    share = torch.softmax(torch.tensor([1.0, 0.0]), 0)[0]
    with torch.no_grad():
        for layer in base.get_decoder().layers:  # type: ignore[operator]
            layer.mlp.down_proj.weight.mul_(share)
        torch.testing.assert_close(trainee.model(TOKENS).logits, base(TOKENS).logits)


@pytest.mark.parametrize("name", ["moe", "moe-copy", "upscaled"])
def test_what_is_shipped_is_a_plain_checkpoint_of_what_was_trained(
    ground: Ground, deeper: Path, name: str, tmp_path: Path
) -> None:
    folder, trainee = load(ground, deeper, name)
    moved(trainee)
    export_model(folder, tmp_path / "model", trainee.tensors(trainee.trainable), {"arm": name})
    with torch.no_grad():
        ours, theirs = trainee.model(TOKENS).logits, load_model(tmp_path / "model", torch.float32)(TOKENS).logits
    torch.testing.assert_close(ours, theirs, rtol=0.1, atol=0.1)
    assert not torch.allclose(ours, load_model(folder, torch.float32)(TOKENS).logits, rtol=0.1, atol=0.1)


def test_a_parallel_run_is_measured_and_not_exported(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(
        tmp_path / "run", model=str(ground.base), arm=settings_of("parallel"), optimizer=OptimizerSettings(lr=1e-2)
    )
    with pytest.raises(TrainingError, match="parallel"):
        train(settings)
    record = train(settings, arm=arm_of("parallel"))
    assert record.exported is False
    assert record.settings.arm == settings_of("parallel")
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(TrainingError, match="custom"):
        shipped_folder(tmp_path / "run")
    shipped = load_shipped(tmp_path / "run", torch.float32, arm=arm_of("parallel"))
    base = load_model(ground.base, torch.float32)
    with torch.no_grad():
        assert not torch.allclose(shipped(TOKENS).logits, base(TOKENS).logits, atol=1e-3)
    assert not any(p.requires_grad for p in shipped.parameters())
    full = train(ground.settings(tmp_path / "full"))
    assert (full.exported, shipped_folder(tmp_path / "full")) == (True, tmp_path / "full" / "model")
    with pytest.raises(TrainingError, match=f"{tmp_path} is no finished run: it has no blockexpand.json"):
        shipped_folder(tmp_path)


def test_what_does_not_start_as_the_base_is_measured_from_the_base(
    ground: Ground, deeper: Path, tmp_path: Path
) -> None:
    keeping = RetentionSettings(replay=0.5, ce_weight=1.0, kl_weight=0.5, forgetting_budget=0.05)
    up = train(
        ground.settings(tmp_path / "up", model=str(deeper), arm=settings_of("upscaled"), retention=keeping),
        arm=arm_of("upscaled"),
    )
    base = train(ground.settings(tmp_path / "base", retention=keeping)).base
    assert up.base is not None
    assert base is not None
    assert base.rise == 0.0
    assert up.base.general is not None
    assert base.general is not None
    assert up.base.rise == pytest.approx(up.base.general / base.general - 1)
    assert up.base.rise != 0.0


def at(domain: float, rise: float) -> Measurement:
    return Measurement(step=1, domain=domain, general=1.0, rise=rise)


def test_outside_the_budget_the_smallest_rise_is_kept_until_one_is_inside() -> None:
    assert is_better(at(5.0, 0.2), at(4.0, 0.3), 0.01, None)
    assert not is_better(at(3.0, 0.4), at(4.0, 0.3), 0.01, None)
    assert is_better(at(5.0, 0.01), at(4.0, 0.3), 0.01, None)
    assert not is_better(at(3.0, 0.3), at(4.0, 0.01), 0.01, None)


def test_a_block_without_one_down_projection_is_refused() -> None:
    family = known_families()["llama"]
    with pytest.raises(
        TrainingError,
        match=r"block 0 of x, of family 'llama', has 0 linear layers that write the MLP's product .*\(none\)",
    ):
        down_projection(nn.Module(), family, "block 0 of x")


@pytest.mark.parametrize("name", ["moe", "parallel", "upscaled"])
def test_several_processes_are_refused(ground: Ground, deeper: Path, name: str) -> None:
    folder = deeper if name == "upscaled" else ground.base
    with pytest.raises(TrainingError, match=f"arm.kind '{name}' trains in one process, and there are several here"):
        arm_of(name).load(folder, torch.float32, needs_reference=False, empty=True)


def test_parallel_has_bounds(ground: Ground) -> None:
    for options in ({"blocks": (1,), "share": 0.0}, {"blocks": (1, 1)}):
        with pytest.raises(TrainingError):
            KINDS["parallel"](**options)
    with pytest.raises(TrainingError, match=r"\[9\]"):
        KINDS["parallel"](blocks=(9,)).load(ground.base, torch.float32, needs_reference=False)
