"""What the tests of packs stand on; the fixture that makes it is in packs/conftest.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from blockexpand import live
from blockexpand.checkpoint import open_checkpoint
from blockexpand.expansion import expand, plan
from blockexpand.families import family_for
from blockexpand.packs import About, Pack, extract
from blockexpand.training.export import export_model

PLACES = {"code": (1, 3), "math": (-1, 1, 1, 2), "law": (3,)}
"""Where each pack's blocks go; two packs share block 1, and two block 3."""


@dataclasses.dataclass(frozen=True)
class PackGround:
    """Folders that tests read and never change."""

    base: Path
    trained: dict[str, Path]
    packs: dict[str, Path]


def make_ground(base: Path, folder: Path) -> PackGround:
    """Expand, move the new blocks, take them out as packs; once for each of PLACES."""
    trained = {
        name: make_trained(base, folder / name, seed, after=after) for seed, (name, after) in enumerate(PLACES.items())
    }
    packs = {name: make_pack(path, folder / f"{name}.pack", name).folder for name, path in trained.items()}
    return PackGround(base, trained, packs)


def make_trained(base: Path, out: Path, seed: int = 0, *, by: float = 0.1, **where: Any) -> Path:
    """The base expanded, its new blocks away from where they started, as a run would export it."""
    expanded = out.with_name(f"{out.name}.expanded")
    expand(base, expanded, plan(base, **where))
    model, _ = live.load(expanded, dtype=torch.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in live.freeze(model):
            parameter.add_(torch.randn_like(parameter) * by)
    checkpoint = open_checkpoint(expanded)
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    export_model(expanded, out, live.tensors_on_disk(model, family), {"arm": "blocks"})
    return out


def make_pack(trained: Path, out: Path, name: str, **settings: Any) -> Pack:
    """The pack of a trained folder."""
    return extract(trained, out, About(name=name), **settings)
