"""The rules that stand on measurements give what was measured where it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockexpand.data import TINY_BASE
from blockexpand.records.learn import Arm
from blockexpand.training.choices import choose_rate
from helpers import MakeBase


@pytest.mark.parametrize(
    ("arm", "tiny", "smollm", "large"),
    [("blocks", 2e-2, 5e-3, 1.8e-4), ("full", 4e-4, 1e-4, 1e-5), ("lora", 2e-3, 5e-4, 1e-4)],
)
def test_rates_fall_with_the_width(own_base: MakeBase, arm: Arm, tiny: float, smollm: float, large: float) -> None:
    assert choose_rate(arm, TINY_BASE) == tiny
    folder = own_base("llama")
    for width, rate in ((64, tiny), (576, smollm), (4096, large)):
        set_width(folder, width)
        assert choose_rate(arm, folder) == rate


def set_width(folder: Path, width: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(hidden_size=width, num_attention_heads=width // 8, num_key_value_heads=width // 8, head_dim=8)
    (folder / "config.json").write_text(json.dumps(config))
