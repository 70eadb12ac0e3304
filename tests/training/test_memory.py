"""A run that cannot fit is refused before it is loaded, with what would do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from blockexpand.errors import LiveError, TrainingError
from blockexpand.records.run import FullArm, RetentionSettings
from blockexpand.training import fitting as fitting_module
from blockexpand.training import train
from blockexpand.training.arms import load_model
from blockexpand.training.memory import check_fits, device_bytes, keeps_gradients, needs_of
from blockexpand.training.processes import World
from lm_helpers import make_expanded
from training_ground import Ground

ALONE = World(device=torch.device("cpu"))


def test_what_a_run_needs_is_what_it_holds(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "run", precision="bfloat16")
    parameters = dict(load_model(ground.expanded, torch.bfloat16).named_parameters())
    new = [p for name, p in parameters.items() if name.startswith(("model.layers.2.", "model.layers.5."))]
    num_new, num_all = (sum(p.numel() for p in some) for some in (new, parameters.values()))
    assert needs_of(settings).state_bytes == 2 * (num_all - num_new) + 16 * num_new
    outer = sum(p.numel() for name, p in parameters.items() if ".layers." not in name)
    assert needs_of(settings).gathered_bytes == 2 * (outer + num_new)
    full = ground.settings(
        tmp_path / "run", arm=FullArm(kind="full"), retention=RetentionSettings(replay=0.5, kl_weight=1)
    )
    assert needs_of(full).state_bytes == (16 + 4) * num_all


def test_quantised_blocks_take_their_bytes(ground: Ground, tmp_path: Path) -> None:
    whole = needs_of(ground.settings(tmp_path, precision="bfloat16"), sharded=False).state_bytes
    parameters = load_model(ground.base, torch.bfloat16).get_decoder().layers.parameters()
    matrices = sum(p.numel() for p in parameters if p.ndim == 2)
    for kind, saved in (("int8", 1.0), ("nf4", 2 - 0.5625)):
        some = needs_of(ground.settings(tmp_path, precision="bfloat16", base_precision=kind), sharded=False)
        assert whole - some.state_bytes == saved * matrices


def test_a_run_that_cannot_fit_is_refused_with_how_many_processes_would_do(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ground.settings(tmp_path / "run")
    check_fits(settings, ALONE)
    assert device_bytes(ALONE) == 2 * device_bytes(World(device=ALONE.device, local_size=2))
    needs = needs_of(settings)
    monkeypatch.setattr(fitting_module, "device_bytes", lambda _world: needs.per_process(3))
    with pytest.raises(TrainingError, match=r"expanded needs .* GB in each of 1 processes .*; start 3 processes"):
        train(settings)
    monkeypatch.setattr(fitting_module, "device_bytes", lambda _world: needs.gathered_bytes)
    with pytest.raises(TrainingError, match="no number of such devices would do; take larger ones"):
        check_fits(settings, ALONE)


def test_gradients_are_kept_whole_between_passes_where_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting_module, "device_bytes", lambda _world: 80 * 10**9)
    assert keeps_gradients(1_700_000_000, ALONE)  # eight new blocks of an 8B
    assert not keeps_gradients(8_000_000_000, ALONE)


def test_a_plan_and_a_checkpoint_that_disagree_are_refused(ground: Ground, tmp_path: Path) -> None:
    """A folder with another's record: its plan says five blocks, its files hold six."""
    other = make_expanded(tmp_path / "other", ground.base, blocks=1)
    mixed = tmp_path / "mixed"
    shutil.copytree(ground.expanded, mixed)
    shutil.copy(other / "blockexpand.json", mixed / "blockexpand.json")
    with pytest.raises(LiveError, match=r"has 6 blocks .*; expected the 5 of the plan"):
        train(ground.settings(tmp_path / "run", model=str(mixed)))


def test_one_process_trains_models_of_no_known_family(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise AssertionError("the family was asked for")

    whole = needs_of(ground.settings(tmp_path, arm=FullArm(kind="full"))).state_bytes
    monkeypatch.setattr(fitting_module, "family_for", unknown)
    settings = ground.settings(tmp_path, arm=FullArm(kind="full"))
    assert needs_of(settings, sharded=False).state_bytes == whole
    check_fits(settings, ALONE)
