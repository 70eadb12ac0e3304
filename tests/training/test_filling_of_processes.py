"""Weights read piece by piece are those that transformers loads, in every way families name and hold them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from blockexpand.errors import TrainingError
from blockexpand.families.modules import load_model
from blockexpand.training.processes import Piece, _Files, _value, fill, names_to_fill

sys.path.append(str(Path(__file__).parents[1] / "families"))

from zoo import ZOO, Case, write

# Plain; names without a prefix; another head; all experts as one; saved buffers; gains minus one; a table of positions.
FAMILIES = ("llama", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "deepseek_v3", "gemma2", "gptj", "mamba2")


def case(family: str) -> Case:
    return next(row for row in ZOO if row.family == family)


def filled(folder: Path) -> Any:
    model = load_model(folder, dtype=torch.bfloat16, device="meta")
    names = names_to_fill(model)
    model._apply(lambda t: torch.full_like(t, 7, device="cpu") if t.is_meta else t)
    fill(model, names, folder)  # type: ignore[arg-type]
    model.tie_weights()  # which FSDP does by itself
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_transformers_loads(family: str, tmp_path: Path) -> None:
    folder = write(case(family), tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():  # buffers that are saved start at zero: a test with zeros would prove nothing
        if not tensor.any():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
            tensors[name] = tensor
    save_file(tensors, file, {"format": "pt"})
    whole, ours = load_model(folder, dtype=torch.bfloat16), filled(folder)
    for kind in ("named_parameters", "named_buffers"):
        expected = dict(vars(nn.Module)[kind](whole))
        found = dict(vars(nn.Module)[kind](ours))
        assert set(expected) == set(found)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(found[name], tensor), name


def test_a_part_of_the_experts_is_a_part_of_the_whole(tmp_path: Path) -> None:
    """A process holds some experts of a tensor that has them all."""
    from blockexpand.checkpoint import open_checkpoint
    from blockexpand.families import family_for

    folder = write(case("mixtral"), tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config, "x", checkpoint.tensors)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    whole = dict(load_model(folder, dtype=torch.bfloat16).named_parameters())[name]
    piece = Piece(local=torch.empty(2, *whole.shape[1:]), shape=tuple(whole.shape), first_row=1, mine=True)
    files = _Files(checkpoint)
    assert torch.equal(_value(name, False, piece, family, files), whole[1:3])
    assert files.num_bytes_read == whole[1:3].nbytes


def test_what_cannot_be_read_piece_by_piece_is_refused(tmp_path: Path) -> None:
    folder = write(case("llama"), tmp_path / "model")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, file, {"format": "pt"})
    with pytest.raises(TrainingError, match=r"has no tensor for the model's model.norm.weight .*train in one process"):
        filled(folder)
    save_file(tensors | {"model.norm.weight": torch.ones(5)}, file, {"format": "pt"})
    with pytest.raises(TrainingError, match=r"has shape \[5\] for model.norm.weight, and the model's .* is \[32\]"):
        filled(folder)
    scaled = tensors | {"model.norm.weight": torch.ones(32).to(torch.float8_e4m3fn)}
    save_file(scaled, file, {"format": "pt"})
    with pytest.raises(TrainingError, match="holds model.norm.weight in F8_E4M3, which cannot be read piece by piece"):
        filled(folder)


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    from blockexpand.errors import LiveError

    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(LiveError, match="transformers cannot build the model of"):
        load_model(tmp_path, dtype=torch.float32, device="meta")
