"""What a run writes down as it goes: metrics.jsonl, one JSON object a line, and boards beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockexpand.training.boards import Board


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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]
