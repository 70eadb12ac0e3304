"""What test_simulated.py does on the device `sim` and on the CPU; in a process of its own, because a device that is
once registered is there for good. `python simulated_runs.py OUT.json FOLDER [--arms] FAMILY ..`: with `--arms` the
first family is trained by every arm, otherwise each by its new blocks.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from zoo import ZOO, Case, write

import simulated_device
from blockexpand import live
from blockexpand.evaluation import measurement as evaluating
from blockexpand.expansion import expand, plan
from blockexpand.live.device import choose_device
from blockexpand.live.forward import RowBatch, cross_entropies
from blockexpand.live.generation import generate
from blockexpand.records.run import (
    ArmSettings,
    BlocksArm,
    DataSettings,
    FullArm,
    LoraArm,
    OldBlocksArm,
    OptimizerSettings,
    RetentionSettings,
    TrainSettings,
    read_metrics,
)
from blockexpand.training import train
from blockexpand.training.loop import Loop
from lm_helpers import make_corpus, make_general, make_lm

ARMS: dict[str, ArmSettings] = {
    "blocks": BlocksArm(), "full": FullArm(kind="full"), "lora": LoraArm(kind="lora", rank=2),
    "old": OldBlocksArm(kind="old-blocks", blocks=(1, 2)),
}  # fmt: skip
COUNTED: dict[str, list[list[str]]] = {"step": [], "measure": []}


def count_waits() -> None:
    """Have the waits of every step and of every measurement noted."""
    for name, what in (("_stepped", "step"), ("_measured", "measure")):
        real = vars(Loop)[name]

        def counting(self: Loop, *args: Any, real: Any = real, what: str = what) -> Any:
            with simulated_device.waits() as noted:
                result = real(self, *args)
            COUNTED[what].append(noted)
            return result

        setattr(Loop, name, counting)


def folder_of(row: Case, language: Path, root: Path) -> Path:
    """A tiny checkpoint of the family, with the tokenizer of `language`."""
    folder = write(dataclasses.replace(row, settings={**row.settings, "vocab_size": 320}), root / row.id, torch.float32)
    for path in language.iterdir():
        if "token" in path.name or path.suffix == ".jinja":
            shutil.copy(path, folder / path.name)
    return folder


def trained(settings: TrainSettings, device: str) -> list[list[float]]:
    """The figures of a short run."""
    out = Path(settings.out) / device
    train(dataclasses.replace(settings, out=str(out)), device=device)
    keys = ("domain_loss", "general_loss", "kl", "gradient_norm", "domain", "general")
    return [[row[key] for key in keys if row.get(key) is not None] for row in read_metrics(out / "metrics.jsonl")]


def alive(expanded: Path, device: str) -> list[Any]:
    """What the expanded model says in memory: losses whole and bypassed, a greedy answer, blocks out again."""
    model: Any = live.load(expanded, torch.float32, device)[0]
    tokens_BT = np.random.default_rng(0).integers(5, 300, (2, 24))
    positions_BT = np.tile(np.concatenate([np.arange(10), np.arange(14)]), (2, 1))
    batch = RowBatch.of(tokens_BT, positions_BT, positions_BT > 0, torch.device(device))
    said: list[Any] = [cross_entropies(model, batch).cpu().tolist()]
    with live.bypass(model):
        said.append(cross_entropies(model, batch).cpu().tolist())
    said += generate(model, tokens_BT[:1, :6].tolist(), num_new=4, ends=[1])
    live.detach(model)
    said.append(cross_entropies(model, batch).cpu().tolist())
    return said


def main() -> None:
    """Both devices, family by family."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    out, root, *families = [word for word in sys.argv[1:] if word != "--arms"]
    assert choose_device().type == simulated_device.NAME
    language = make_lm(Path(root) / "language")
    domain = make_corpus(Path(root) / "domain", language, domain=True)
    general = make_general(Path(root) / "general", language)
    count_waits()
    found: dict[str, Any] = {}
    for family in families:
        row = next(row for row in ZOO if row.model_type == family)
        base = folder_of(row, language, Path(root))
        expanded = Path(root) / f"{row.id}-deeper"
        expand(base, expanded, plan(base, **row.request))
        for arm in ARMS if "--arms" in sys.argv and family == families[0] else ("blocks",):
            settings = TrainSettings(
                model=str(expanded if arm == "blocks" else base),
                out=str(Path(root) / f"{row.id}-{arm}"),
                arm=ARMS[arm],
                data=DataSettings(domain=str(domain), general=str(general), validation_rows=3),
                domain_tokens=3 * 3 * 32,
                rows_per_step=5,
                rows_per_pass=2,
                optimizer=OptimizerSettings(name="muon", lr=1e-3),
                retention=RetentionSettings(replay=0.4, kl_weight=1.0),
                measure_every_steps=2,
                checkpoint_every_steps=2,
                track=(),
            )
            for counted in COUNTED.values():
                counted.clear()
            figures = {device: trained(settings, device) for device in ("cpu", simulated_device.NAME)}
            found[f"{family} {arm}"] = {"figures": figures, "waits": {k: list(v) for k, v in COUNTED.items()}}
        losses = {}
        for device in ("cpu", simulated_device.NAME):
            subject = evaluating.subject_of(expanded, device=device)
            record = evaluating.evaluate(subject, {"general": str(general)}, Path(root) / f"{row.id}-eval-{device}")
            losses[device] = [one.loss for one in record.held_out.values()]
        found[f"{family} eval"] = {"figures": losses}
        found[f"{family} live"] = {
            "figures": {device: alive(expanded, device) for device in ("cpu", simulated_device.NAME)}
        }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
