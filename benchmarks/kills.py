"""Kill a run at twenty random moments and compare what it leaves with an uninterrupted run's, byte for byte.

    python benchmarks/kills.py [KILLS] [SEED]

A tiny model made in code (tests/lm_helpers.py), blocks trained under a forgetting budget with KL to the bypassed
base, a checkpoint every second step. A killed process is started again with `resume`; when a run ends before its next
kill is due, another begins. It fails at the first difference in the loss curve, the shipped model or the
last checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from blockexpand.training.checkpoints import newest_checkpoint  # noqa: E402
from killing import context, course, killed_at_random, run_in_child, shipped  # noqa: E402
from lm_helpers import make_corpus, make_expanded, make_lm  # noqa: E402
from training_ground import KEEPING, Ground  # noqa: E402


def main() -> None:
    """Run it all in a temporary folder."""
    words = [int(word) for word in sys.argv[1:]]
    num_kills, seed = words[0] if words else 20, words[1] if len(words) > 1 else 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = make_lm(work / "base")
        domain = make_corpus(work / "domain", base, domain=True)
        general = make_corpus(work / "general", base, seed=2)
        ground = Ground(base=base, expanded=make_expanded(work / "e", base), domain=domain, general=general, chats=work)
        settings = ground.settings(work / "whole", retention=KEEPING, domain_tokens=40 * 2 * 32)
        settings = dataclasses.replace(settings, checkpoint_every_steps=2, measure_every_steps=3)
        seconds = _uninterrupted(settings)
        killed = killed_at_random(settings, seconds, num_kills, seed)
        whole = work / "whole"
        for run in killed.run_folders:
            assert course(run) == course(whole), f"{run}: another loss curve"
            assert shipped(run) == shipped(whole), f"{run}: other bytes in the model"
            newest = newest_checkpoint(run)
            assert newest is not None, f"{run} has no checkpoint"
            for file in newest.glob("*.safetensors"):
                there = whole / "checkpoints" / newest.name / file.name
                assert file.read_bytes() == there.read_bytes(), f"{run}: other bytes in {file.name}"
    steps = ", ".join(f"{step}" for _, step in killed.moments)
    print(
        f"{len(killed.moments)} kills in {len(killed.run_folders)} runs of 40 steps; last step logged at each: {steps}"
    )
    print("every loss curve, shipped model and last checkpoint equal to the uninterrupted run's, byte for byte")


def _uninterrupted(settings: object) -> float:
    child = context().Process(target=run_in_child, args=(settings,))
    begun = time.monotonic()
    child.start()
    child.join()
    assert child.exitcode == 0, f"the uninterrupted run ended with {child.exitcode}"
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
