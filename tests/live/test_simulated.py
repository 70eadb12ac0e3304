"""On a simulated accelerator: the CPU's figures within rounding, one wait a step, one a measurement; eight families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
FAMILIES = ("llama", "qwen2", "olmo2", "mixtral", "deepseek_v3", "mistral", "mamba2", "gpt2")
"""Dense, biases, post-norm, experts, latent attention, sliding window, state space, Conv1D."""
FEW = ("llama", "mamba2")
"""Of them, those of `make test`: with a model that tells documents apart by positions, and one that can't."""


def run(folder: Path, *options: str) -> dict[str, Any]:
    path = os.pathsep.join(str(p) for p in (TESTS.parent / "src", TESTS.parent, TESTS, TESTS / "families"))
    words = [sys.executable, str(TESTS / "live" / "simulated_runs.py"), str(folder / "out.json"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())


def check(found: dict[str, Any]) -> None:
    for name, one in found.items():
        for ours, theirs in zip(flat(one["figures"]["cpu"]), flat(one["figures"]["sim"]), strict=True):
            # Muon multiplies in bfloat16; everything else is float32.
            assert theirs == pytest.approx(ours, rel=2e-3, abs=2e-4), name
        for what, steps in one.get("waits", {}).items():
            assert steps, f"{name}: no {what} was counted"
            # What is kept of the best step is copied to the host, which is saving.
            steps = [[wait for wait in waits if "training/checkpoints.py" not in wait] for waits in steps]
            assert max(len(waits) for waits in steps) <= 1, (name, what, steps)
            assert any(steps), f"{name}: the simulated device was not used"


def flat(values: Any) -> list[float]:
    return [x for value in values for x in flat(value)] if isinstance(values, list) else [values]


def test_a_step_waits_once_and_gives_the_cpus_figures(tmp_path: Path) -> None:
    found = run(tmp_path, *FEW)
    assert {f"{family} {what}" for family in FEW for what in ("blocks", "eval", "live")} == set(found)
    check(found)


@pytest.mark.slow
def test_eight_families_and_every_arm(tmp_path: Path) -> None:
    found = run(tmp_path, "--arms", *FAMILIES)
    assert {f"llama {arm}" for arm in ("blocks", "full", "lora", "old", "live")} <= set(found)
    check(found)
