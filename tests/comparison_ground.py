"""What a test of comparisons stands on: a tiny base, two texts, a small recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blockexpand.records.comparison import ArmRecipe, CompareRecipe, PlanRecipe
from blockexpand.records.run import BlocksArm, DataSettings, FullArm, RetentionSettings


@dataclasses.dataclass(frozen=True)
class Place:
    base: Path
    domain: Path
    general: Path

    def recipe(self, out: Path, **changes: Any) -> CompareRecipe:
        """Two arms, three steps."""
        values: dict[str, Any] = {
            "base": str(self.base),
            "out": str(out),
            "data": DataSettings(domain=str(self.domain), general=str(self.general), validation_rows=2),
            "domain_tokens": 3 * 2 * 32,
            "rows_per_step": 4,
            "rows_per_pass": 4,
            "retention": RetentionSettings(replay=0.5, ce_weight=1.0, kl_weight=0.0, forgetting_budget=0.05),
            "measure_every_steps": 3,
            "arms": (
                ArmRecipe(name="new", arm=BlocksArm(), plan=PlanRecipe(blocks=2), lrs=(1e-2,)),
                ArmRecipe(name="full", arm=FullArm(kind="full"), lrs=(3e-3,)),
            ),
        }
        return CompareRecipe(**(values | changes))
