"""After training, every tensor that did not train is the same, byte for byte, or the run says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from blockexpand.checkpoint import open_checkpoint, stated_ends
from blockexpand.errors import TrainingError
from blockexpand.packs import detach_on_disk
from blockexpand.training import run as running_module
from blockexpand.training import train
from blockexpand.training.export import export_model, prove_unchanged
from helpers import tree
from training_ground import Ground


def test_a_single_flipped_bit_is_found(ground: Ground, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ground.expanded, copy)
    tensors = open_checkpoint(copy).tensors
    assert prove_unchanged(ground.expanded, copy, ()) == len(tensors)
    entry = tensors["model.layers.4.mlp.up_proj.weight"]
    with open(copy / entry.file, "r+b") as stream:
        stream.seek(entry.end - 1)
        last = stream.read(1)[0]
        stream.seek(entry.end - 1)
        stream.write(bytes([last ^ 1]))
    with pytest.raises(TrainingError, match=r"holds model.layers.4.mlp.up_proj.weight with other bytes than"):
        prove_unchanged(ground.expanded, copy, ())
    assert prove_unchanged(ground.expanded, copy, ["model.layers.4.mlp.up_proj.weight"]) == len(tensors) - 1
    with pytest.raises(TrainingError, match="do not hold the same tensors: lm_head.odd is in one only"):
        prove_unchanged(ground.expanded, copy, ["lm_head.odd"])


def test_a_run_counts_what_trained_and_what_is_unchanged(ground: Ground, tmp_path: Path) -> None:
    record = train(ground.settings(tmp_path / "run"))
    assert record.num_trained_tensors == 2 * 9
    assert record.num_unchanged_tensors == len(open_checkpoint(ground.expanded).tensors) - 2 * 9


def test_a_run_whose_old_tensors_changed_leaves_no_record(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = running_module.export_model

    def spoilt(source: Path, out: Path, *rest: object) -> None:
        real(source, out, *rest)  # type: ignore[arg-type]
        entry = open_checkpoint(out).tensors["model.norm.weight"]
        with open(out / entry.file, "r+b") as stream:
            stream.seek(entry.start)
            stream.write(b"\x00\x01")

    monkeypatch.setattr(running_module, "export_model", spoilt)
    with pytest.raises(TrainingError, match="holds model.norm.weight with other bytes"):
        train(ground.settings(tmp_path / "run"))
    assert not (tmp_path / "run" / "blockexpand.json").exists()


def test_where_chats_trained_the_end_of_a_turn_is_shipped_and_the_base_comes_back(
    ground: Ground, tmp_path: Path
) -> None:
    """The folder names the token beside its own; the base's own file is in the record, for `pack detach`."""
    tensors = {"model.norm.weight": load_file(ground.expanded / "model.safetensors")["model.norm.weight"]}
    export_model(ground.expanded, tmp_path / "tuned", tensors, {"arm": "blocks"}, turn_end=3)
    before, after = (stated_ends(folder) for folder in (ground.expanded, tmp_path / "tuned"))
    assert after == [*before, 3]
    detach_on_disk(tmp_path / "tuned", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(ground.base)
