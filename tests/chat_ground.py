"""A tiny model of ours with a template, expanded so that the base inside answers otherwise, and packs of its base."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import blockexpand
from helpers import edit_json, make_base
from packs_ground import make_pack, make_trained

SAID = ("ran red the old to sat", "over mat over and house mat", "dog on cat and over sat")
"""What the packs a and b and the base find likeliest, as it happens, where no evidence is asked for."""


def write_expanded(folder: Path) -> Path:
    """`folder`/base and `folder`/run/model: an expanded model whose new blocks do something, with a run's record."""
    base = make_base(folder / "base", "llama", num_hidden_layers=2, seed=4)
    # Words only, so that every answer can be seen.
    edit_json(
        base / "generation_config.json", lambda entries: entries.update(suppress_tokens=[*range(4), *range(22, 96)])
    )
    model = folder / "run" / "model"
    blockexpand.expand(base, model, blockexpand.plan(base, blocks=1))
    file = next(model.glob("*.safetensors"))
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if tensor.count_nonzero() == 0:
            tensors[name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    save_file(tensors, file, metadata={"format": "pt"})
    record = {"best": {"step": 4, "domain": 1.25, "general": 3.6, "rise": 0.0075}, "base": {"domain": 2.0, "rise": 0.0}}
    (folder / "run" / "blockexpand.json").write_text(json.dumps(record))
    return model


def write_packs(base: Path, folder: Path) -> list[Path]:
    """Two packs of the base, a and b, that SAID tells apart."""
    made = {name: make_trained(base, folder / name, seed, by=0.3, after=(1,)) for seed, name in enumerate(("a", "b"))}
    return [make_pack(path, folder / f"{name}.pack", name).folder for name, path in made.items()]
