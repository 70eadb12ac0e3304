"""The boards: what they are told, and what is refused. trackio and wandb are stood in for by a module."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from blockexpand.errors import TrainingError
from blockexpand.training.metrics import check_boards, open_boards


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls that a stand-in for trackio and for wandb received."""
    made: list[tuple[str, dict[str, Any]]] = []
    for package in ("trackio", "wandb"):
        module = ModuleType(package)
        vars(module).update(
            init=lambda **kwargs: made.append(("init", kwargs)),
            log=lambda figures, step: made.append(("log", {"step": step, **figures})),
            finish=lambda: made.append(("finish", {})),
        )
        monkeypatch.setitem(sys.modules, package, module)
    return made


@pytest.mark.parametrize("package", ["trackio", "wandb"])
def test_a_hosted_board_is_told_settings_and_figures(
    package: str, calls: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    (board,) = open_boards([package], tmp_path / "my-run", 0, {"seed": 3})
    board.write(7, {"train/domain_loss": 1.5})
    board.close()
    assert [name for name, _ in calls] == ["init", "log", "finish"]
    begun = calls[0][1]
    assert (begun["project"], begun["name"], begun["config"], begun["resume"]) == (
        "blockexpand", "my-run", {"seed": 3}, "allow",
    )  # fmt: skip
    assert begun.get("id") == ("my-run" if package == "wandb" else None)
    assert calls[1][1] == {"step": 7, "train/domain_loss": 1.5}


def test_tensorboard_holds_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (board,) = open_boards(["tensorboard"], tmp_path, 0, {})
    board.write(1, {"train/domain_loss": 1.5})
    board.write(2, {"train/domain_loss": 1.25})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/domain_loss")] == [(1, 1.5), (2, 1.25)]


def test_a_board_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else object())
    check_boards(["tensorboard", "trackio"])
    with pytest.raises(TrainingError, match="track names 'wandb', and the package wandb is not installed"):
        check_boards(["tensorboard", "wandb"])
