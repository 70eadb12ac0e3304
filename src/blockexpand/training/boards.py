"""Where a run's figures are shown as it goes: TensorBoard, and trackio or Weights & Biases where installed.

In: the names in a run's `track`. Out: boards that take the same figures as metrics.jsonl. Refused, before the
model is loaded: a board whose package is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from blockexpand.errors import TrainingError

PROJECT = "blockexpand"
"""The project that runs are filed under."""


class Board(Protocol):
    """One place where figures are shown."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures, named like `train/domain_loss`, at a step."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class TensorBoard:
    """Event files under `folder`/tensorboard; a resumed run hides what it is about to write again."""

    def __init__(self, folder: Path, from_step: int) -> None:
        """Open the event file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one scalar a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Hosted:
    """trackio or wandb, which share init, log and finish; a resumed run goes on under the same name."""

    def __init__(self, package: str, folder: Path, settings: Mapping[str, Any]) -> None:
        """Begin, or take up, the run named after its folder."""
        self._package: Any = importlib.import_module(package)
        known = {"dir": str(folder), "id": folder.name} if package == "wandb" else {}
        self._package.init(project=PROJECT, name=folder.name, config=dict(settings), resume="allow", **known)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Log the figures of one step."""
        self._package.log(dict(figures), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._package.finish()


def check_boards(names: Sequence[str]) -> None:
    """Refuse a board whose package is missing.

    Raises:
        TrainingError: with its name.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise TrainingError(
                f"track names {name!r}, and the package {name} is not installed; expected it, or another of "
                f"tensorboard, trackio, wandb; pip install {name}, or take it out of track"
            )


def open_boards(names: Sequence[str], folder: Path, from_step: int, settings: Mapping[str, Any]) -> list[Board]:
    """The boards of a run in `folder` that goes on from `from_step`; `settings` is shown beside the figures."""
    return [
        TensorBoard(folder, from_step) if name == "tensorboard" else Hosted(name, folder, settings) for name in names
    ]
