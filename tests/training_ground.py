"""What a training test stands on; the fixture that makes it is in training/conftest.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blockexpand.training.settings import BlocksArm, DataSettings, OptimizerSettings, TrainSettings


@dataclasses.dataclass(frozen=True)
class Ground:
    """Folders that tests read and never change."""

    base: Path
    expanded: Path
    domain: Path
    general: Path
    chats: Path

    def settings(self, out: Path, **changes: Any) -> TrainSettings:
        """A short run of the arm `blocks`."""
        values: dict[str, Any] = {
            "model": str(self.expanded),
            "out": str(out),
            "arm": BlocksArm(),
            "data": DataSettings(domain=str(self.domain), general=str(self.general), validation_rows=4),
            "domain_tokens": 8 * 4 * 32,
            "rows_per_step": 4,
            "rows_per_pass": 4,
            "optimizer": OptimizerSettings(lr=3e-3),
            "measure_every_steps": 4,
            "checkpoint_every_steps": 3,
        }
        return TrainSettings(**(values | changes))
