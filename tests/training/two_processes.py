"""What test_processes.py has two processes do; run by each of them, with the folders in a JSON file.

`python two_processes.py JOB.json`: the job has the ground's folders and a folder for the runs. What is measured
inside goes to `<out>/facts-<rank>.json`.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from blockexpand.errors import Interrupted, TrainingError
from blockexpand.records.run import LoraArm, OptimizerSettings, TrainSettings
from blockexpand.training import loop as loop_module
from blockexpand.training import train
from blockexpand.training.arms import arm_of
from blockexpand.training.data import open_data
from blockexpand.training.loop import Loop
from blockexpand.training.processes import World, fill, join_world, names_to_fill, shard
from training_ground import KEEPING, SHARDED_RUNS, Ground, sharded_settings


def stop_after(step: int, settings: TrainSettings) -> None:
    """Train until a step, then stop as if Ctrl-C had been pressed in the second process only."""
    real = Loop._stepped

    def stepped(self: Loop, number: int, progress: Any, tracker: Any, ends: Any) -> Any:
        if number == step - 1 and self.world.rank == 1:
            ends[1].append(2)
        return real(self, number, progress, tracker, ends)

    Loop._stepped = stepped  # type: ignore[method-assign]
    try:
        with pytest.raises(Interrupted, match=f"stopped at step {step} of"):
            train(settings)
    finally:
        Loop._stepped = real  # type: ignore[method-assign]


def facts_of_sharding(ground: Ground, out: Path, world: World) -> dict[str, Any]:
    """Where the parameters of a loaded model are, what this process holds of them, and what it read."""
    assert world.mesh is not None
    settings = ground.settings(out / "unused")
    trainee = arm_of(settings.arm).load(ground.expanded, torch.bfloat16, needs_reference=True, empty=True)
    names = names_to_fill(trainee.model)
    assert {p.device.type for p in trainee.model.parameters()} == {"meta"}
    trainee, root = shard(trainee, world.mesh, world.device, torch.bfloat16)
    num_bytes_read = fill(trainee.model, names, ground.expanded)
    parameters = dict(trainee.model.named_parameters())
    whole = arm_of(settings.arm).load(ground.expanded, torch.bfloat16, needs_reference=True).model
    expected = dict(whole.named_parameters())
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad(), trainee.reference() as base:
        ours = root(lambda: base(tokens).logits)
        theirs = arm_of(settings.arm).load(ground.expanded, torch.bfloat16, needs_reference=True)
        with theirs.reference() as theirs_base:
            reference_is_the_base = torch.equal(ours, theirs_base(tokens).logits)
    return {
        "placements": sorted({str(p.placements) for p in parameters.values() if isinstance(p, DTensor)}),
        "all_sharded": all(isinstance(p, DTensor) for p in parameters.values()),
        "bytes_held": sum(p.to_local().nbytes for p in parameters.values() if isinstance(p, DTensor)),
        "bytes_whole": sum(p.nbytes for p in expected.values()),
        "bytes_read": num_bytes_read,
        "bytes_on_disk": sum(f.stat().st_size for f in ground.expanded.glob("*.safetensors")),
        "equal": all(torch.equal(parameters[n].full_tensor(), expected[n]) for n in names),  # type: ignore[attr-defined]
        "trained_dtypes": sorted({str(p.dtype) for p in trainee.trainable.values()}),
        "reference_is_the_base": reference_is_the_base,
    }


def facts_of_dealing(ground: Ground, out: Path, world: World) -> dict[str, Any]:
    """The rows of this process, step by step, and how many passes they make."""
    settings = ground.settings(out / "unused", retention=KEEPING, rows_per_step=5, rows_per_pass=1)
    data = open_data(settings, world)
    steps = [data.shares(step)[world.rank] for step in range(6)]
    return {
        "rows": [[("domain" if split is data.domain else "general", row) for split, row in rows] for rows in steps],
        "num_passes": [len(data.passes(step)) for step in range(6)],
    }


def with_one_bad_pass(settings: TrainSettings) -> None:
    """Train while the loss of the second process is not finite in its third step."""
    real = Loop._losses
    calls = itertools.count(1)

    def losses(self: Loop, *args: Any) -> Any:
        loss, *rest = real(self, *args)
        bad = self.world.rank == 1 and next(calls) == 3
        return (loss * math.nan if bad else loss, *rest)

    Loop._losses = losses  # type: ignore[method-assign]
    try:
        train(settings)
    finally:
        Loop._losses = real  # type: ignore[method-assign]


def refused(work: Callable[[], object]) -> str:
    with pytest.raises(TrainingError) as caught:
        work()
    return str(caught.value)


def main() -> None:
    """Do all of it, in the order in which both processes must."""
    job = json.loads(Path(sys.argv[1]).read_text())
    out = Path(job["out"])
    ground = Ground(**{name: Path(folder) for name, folder in job["ground"].items()})
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    facts: dict[str, Any] = {}
    with join_world() as world:
        facts["sharding"] = facts_of_sharding(ground, out, world)
        facts["dealing"] = facts_of_dealing(ground, out, world)
    for name in SHARDED_RUNS:
        settings = sharded_settings(ground, name, out / f"{name}-2")
        train(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "keeps_gradients", lambda *_: False)
        train(sharded_settings(ground, "passes", out / "reduced-2"))
    stop_after(5, sharded_settings(ground, "keeping", out / "cut-2-2"))
    train(sharded_settings(ground, "keeping", out / "cut-2-2"), resume=True)
    stop_after(5, sharded_settings(ground, "keeping", out / "cut-2-1"))
    train(sharded_settings(ground, "keeping", out / "cut-1-2"), resume=True)
    with_one_bad_pass(ground.settings(out / "bad"))
    facts["lora"] = refused(lambda: train(ground.settings(out / "lora", arm=LoraArm(kind="lora", rank=2))))
    facts["taken"] = refused(lambda: train(sharded_settings(ground, "keeping", out / "cut-2-2")))
    explodes = ground.settings(out / "explodes", optimizer=OptimizerSettings(lr=1e30))
    facts["explodes"] = refused(lambda: train(explodes))
    (out / f"facts-{world.rank}.json").write_text(json.dumps(facts))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
