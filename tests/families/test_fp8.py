"""FP8 files with a scale beside each weight: zero bytes are zeros there, whatever the scale, so they are expanded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from zoo import ZOO, write

from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.errors import CheckpointError, PackError, PlanError
from blockexpand.expansion import expand, plan, survey, verify
from blockexpand.packs import extract, scale_on_disk
from helpers import edit_config

LARGEST = 448.0
"""Of E4M3 (OCP 8-bit floating point 1.0, section 5.2)."""
BLOCK = 16


def quantised(weight_RC: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [R, C] in E4M3, and a scale for each of its blocks, as DeepSeek-V3's files have them."""
    R, C = weight_RC.shape
    rows, columns = -(-R // BLOCK), -(-C // BLOCK)
    padded = torch.zeros(rows * BLOCK, columns * BLOCK)
    padded[:R, :C] = weight_RC.float()
    tiles = padded.view(rows, BLOCK, columns, BLOCK)
    scales = tiles.abs().amax((1, 3)).clamp_min(1e-12) / LARGEST
    codes = (tiles / scales[:, None, :, None]).view(rows * BLOCK, columns * BLOCK)[:R, :C]
    return codes.contiguous().to(torch.float8_e4m3fn), scales


def fp8_base(family: str, folder: Path) -> Path:
    """The zoo's model of the family with the matrices of its blocks in FP8."""
    write(next(row for row in ZOO if row.family == family), folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if ".layers." in name and name.endswith("proj.weight"):
            tensors[name], tensors[f"{name}_scale_inv"] = quantised(tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    scheme = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    return edit_config(folder, quantization_config=scheme)


@pytest.mark.parametrize("family", ["llama", "deepseek_v3"])
def test_fp8_weights_with_scales_are_expanded_and_proved(tmp_path: Path, family: str):
    base = fp8_base(family, tmp_path / "base")
    made = plan(base, 2)
    tensors = {t.tail: t for t in made.tensors_of(made.new_blocks[0].donor)}
    writer, scale = tensors["self_attn.o_proj.weight"], tensors["self_attn.o_proj.weight_scale_inv"]
    assert (writer.dtype, writer.starts, writer.parameter) == ("F8_E4M3", "zero", True)
    assert (scale.dtype, scale.starts, scale.parameter) == ("F32", "donor", False)
    expand(base, tmp_path / "out", made)
    proof = verify(base, tmp_path / "out")
    assert proof.passed, proof.lines
    assert proof.dtypes == ("BF16", "F32")


def test_fp8_without_its_quantization_config_is_not_taken_for_floats(tmp_path: Path):
    base = edit_config(fp8_base("llama", tmp_path / "base"), quantization_config=None)
    with pytest.raises(PlanError, match="weight_scale_inv' in .* is not one of family 'llama'"):
        survey(open_checkpoint(base))


def test_a_nan_in_fp8_is_found(tmp_path: Path):
    base = fp8_base("llama", tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].view(torch.uint8)[0, :2] = torch.tensor([0x7F, 0xFF], dtype=torch.uint8)
    tensors[name].view(torch.uint8)[1, :2] = torch.tensor([0x7E, 0xFE], dtype=torch.uint8)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert digest_tensors(open_checkpoint(base))[name].num_not_finite == 2
    with pytest.raises(CheckpointError, match=r"up_proj\.weight' holds 2 NaN"):
        expand(base, tmp_path / "out", plan(base, 2))


def test_a_pack_of_fp8_blocks_is_not_scaled(tmp_path: Path):
    """Half of a number of 8 bits may be none, and its scale is no writer."""
    base = fp8_base("llama", tmp_path / "base")
    expand(base, tmp_path / "expanded", plan(base, 2))
    pack = extract(tmp_path / "expanded", tmp_path / "pack")
    expected = r"'after1.0.mlp.down_proj.weight', which writes .*, as F8_E4M3; expected one of BF16, F16, F32, F64"
    with pytest.raises(PackError, match=expected):
        scale_on_disk(pack, tmp_path / "half", 0.5)
    assert not (tmp_path / "half").exists()
