"""Output files: what goes where, holes where zeros are, an index that is right."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockexpand.checkpoint import OutputTensor, lay_out, open_checkpoint, output_tensor, write_weights
from helpers import MakeBase

UP = "model.layers.1.mlp.up_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"


def added_to(folder: Path, copies: int = 3) -> list[OutputTensor]:
    tensors = open_checkpoint(folder).tensors
    added = []
    for i in range(copies):
        added += [output_tensor(f"new.{i}.down", tensors[DOWN], "zero"), output_tensor(f"new.{i}.up", tensors[UP])]
    return added


def write(base: Path, out: Path, rename: str = "") -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(base)
    kept = {name: name.replace("model.layers.3", rename) if rename else name for name in checkpoint.tensors}
    out.mkdir()
    write_weights(checkpoint, lay_out(checkpoint, kept, added_to(base)), out)
    return {k: v for path in sorted(out.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.parametrize("sharded", [False, True])
def test_old_tensors_keep_their_bytes_under_new_names_and_new_ones_are_copies_or_zeros(
    tiny_base: MakeBase, tmp_path: Path, sharded: bool
):
    base = tiny_base("llama", sharded=sharded)
    old = {k: v for path in base.glob("*.safetensors") for k, v in load_file(path).items()}
    found = write(base, tmp_path / "out", rename="model.layers.9")
    for name, tensor in old.items():
        assert torch.equal(found.pop(name.replace("model.layers.3", "model.layers.9")), tensor)
    for i in range(3):
        assert torch.equal(found.pop(f"new.{i}.up"), old[UP])
        assert torch.equal(found.pop(f"new.{i}.down"), torch.zeros_like(old[DOWN]))
    assert not found


def test_one_file_stays_one_file_with_the_holes_at_its_end(tiny_base: MakeBase, tmp_path: Path):
    base = tiny_base("llama", hidden_size=256, intermediate_size=512, vocab_size=96, blocks=2)
    write(base, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    file = tmp_path / "out" / "model.safetensors"
    entries = open_checkpoint_of(tmp_path / "out", base).tensors
    assert list(entries)[-3:] == [f"new.{i}.down" for i in range(3)]
    num_zero = sum(entries[f"new.{i}.down"].num_bytes for i in range(3))
    # A hole takes no blocks; a file system without holes would make this test meaningless, not wrong.
    assert os.stat(file).st_blocks * 512 <= file.stat().st_size - num_zero + 3 * 4096


def open_checkpoint_of(out: Path, base: Path):
    (out / "config.json").write_text((base / "config.json").read_text())
    return open_checkpoint(out)


def test_shards_are_kept_whole_and_new_ones_are_no_larger_than_the_largest(tiny_base: MakeBase, tmp_path: Path):
    base = tiny_base("llama", sharded=True)
    write(base, tmp_path / "out")
    old, new = open_checkpoint(base), open_checkpoint_of(tmp_path / "out", base)
    count = len(new.shards)
    assert new.shards == tuple(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))
    assert count > len(old.shards)

    def sizes(checkpoint):
        return [sum(e.num_bytes for e in checkpoint.tensors.values() if e.file == s) for s in checkpoint.shards]

    assert sizes(new)[: len(old.shards)] == sizes(old)
    assert max(sizes(new)) <= max(sizes(old))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == new.num_bytes
    assert index["metadata"]["total_parameters"] == sum(e.num_elements for e in new.tensors.values())
    assert index["weight_map"] == {name: entry.file for name, entry in new.tensors.items()}
