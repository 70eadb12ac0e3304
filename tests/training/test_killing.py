"""Killed at random moments, a run ends with the curve and the bytes of one that was left alone.

Three moments here; `python benchmarks/kills.py` has twenty.
"""

from __future__ import annotations

import time
from pathlib import Path

from blockexpand.training.checkpoints import newest_checkpoint
from killing import context, course, killed_at_random, run_in_child, shipped
from training_ground import KEEPING, Ground


def test_kills_at_random_moments_leave_no_trace(ground: Ground, tmp_path: Path) -> None:
    settings = ground.settings(tmp_path / "whole", retention=KEEPING, domain_tokens=20 * 2 * 32)
    child = context().Process(target=run_in_child, args=(settings,))
    begun = time.monotonic()
    child.start()
    child.join()
    assert child.exitcode == 0
    killed = killed_at_random(settings, time.monotonic() - begun, num_kills=3, seed=4)
    assert len(killed.moments) == 3
    whole = tmp_path / "whole"
    for run in killed.run_folders:
        assert course(run) == course(whole), killed.moments
        assert shipped(run) == shipped(whole), killed.moments
        assert not list((run / "checkpoints").glob(".*")), "something half-written was left"
        newest = newest_checkpoint(run)
        assert newest is not None
        for file in newest.glob("*.safetensors"):
            assert file.read_bytes() == (whole / "checkpoints" / newest.name / file.name).read_bytes()
