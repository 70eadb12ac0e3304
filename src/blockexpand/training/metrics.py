"""What a run writes down as it goes: metrics.jsonl, one JSON object a line, and boards beside it.

Boards take the same figures: TensorBoard, and trackio or Weights & Biases where installed. Refused, before the model
is loaded: a board whose package is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from blockexpand.errors import TrainingError
from blockexpand.records.run import read_metrics


class Tracker:
    """Appends metrics; a resumed run first drops the lines after the step it goes on from."""

    def __init__(self, folder: Path, from_step: int, boards: Sequence[Board] = ()) -> None:
        """Open `folder`/metrics.jsonl; every figure also goes to the boards."""
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self._path) if row["step"] <= from_step] if from_step else []
        self._path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._stream = self._path.open("a", encoding="utf-8")
        self._boards = boards

    def write(self, step: int, kind: str, values: Mapping[str, float | None]) -> None:
        """One line: the step, its kind (`train` or `measure`) and the figures."""
        self._stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._stream.flush()
        figures = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
        for board in self._boards:
            board.write(step, figures)

    def close(self) -> None:
        """Flush and close all."""
        self._stream.close()
        for board in self._boards:
            board.close()


class SilentTracker(Tracker):
    """What the other processes of a run have: the first one writes for all."""

    def __init__(self) -> None:
        """Open nothing."""

    def write(self, step: int, kind: str, values: Mapping[str, float | None]) -> None:
        """Write nothing."""

    def close(self) -> None:
        """There is nothing to close."""


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
