"""Quantised weights, in whatever form they say that they are: refused, with what to do instead. No torch."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))
import fuzz_seeds

from blockexpand.checkpoint import TensorEntry, open_checkpoint
from blockexpand.errors import CheckpointError, FamilyError, PlanError
from blockexpand.expansion import survey
from blockexpand.families import family_for, known_families

LLAMA = known_families()["llama"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"quantization_config": {"quant_method": method}}, f"quantization_config: '{method}'")
        for method in (
            "gptq", "awq", "bitsandbytes", "bitsandbytes_4bit", "mxfp4", "compressed-tensors", "eetq", "hqq", "torchao",
            "quanto", "aqlm", "higgs", "spqr", "vptq", "fp_quant", "fbgemm_fp8", "modelopt", "auto-round", "FP8",
        )
    ]
    + [
        ({"quantization_config": "int4"}, "quantization_config: 'int4'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4}"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compression_config: 'compressed-tensors'"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization: {'group_size': 64, 'bits': 4}"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "text_config.quantization_config: 'awq'"),
    ],
)  # fmt: skip
def test_a_config_that_says_quantised_is_refused_with_what_to_do(entries: dict[str, Any], words: str):
    config = fuzz_seeds.config_of(LLAMA)
    assert family_for(config, "m").name == "llama"
    with pytest.raises(FamilyError) as raised:
        family_for({**config, **entries}, "m")
    assert f"m: the weights are quantised ({words}" in str(raised.value)
    assert "expand the unquantised model and quantise the result" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.self_attn.q_proj.qzeros", "GPTQ or AWQ"),
        ("model.layers.0.self_attn.q_proj.g_idx", "GPTQ"),
        ("model.layers.1.mlp.up_proj.weight.absmax", "bitsandbytes"),
        ("model.layers.1.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("model.layers.1.mlp.up_proj.SCB", "bitsandbytes"),
        ("model.layers.1.mlp.up_proj.weight_packed", "compressed-tensors"),
        ("model.layers.1.mlp.up_proj.weight_scale", "compressed-tensors or ModelOpt"),
        ("model.layers.1.mlp.up_proj.input_scale", "compressed-tensors or ModelOpt"),
        ("model.layers.1.mlp.up_proj.weight_scales", "EETQ"),
        ("model.layers.1.mlp.up_proj.W_q", "HQQ"),
        ("model.layers.1.mlp.experts.gate_up_proj_blocks", "MXFP4"),
        ("model.embed_tokens.scales", "GPTQ, AWQ or MLX"),
        ("lm_head.qweight", "GPTQ or AWQ"),
    ],
)
def test_weights_that_are_quantised_without_a_word_in_the_config_are_refused(name: str, method: str):
    base = fuzz_seeds.checkpoint_of(LLAMA, fuzz_seeds.config_of(LLAMA))
    survey(base)
    extra = TensorEntry(file="model.safetensors", dtype="U8", shape=(4, 4), start=0, end=16)
    with pytest.raises(PlanError) as raised:
        survey(dataclasses.replace(base, tensors={**base.tensors, name: extra}))
    assert f"the tensor {name!r} belongs to quantised weights ({method})" in str(raised.value)
    assert "expand the unquantised model and quantise the result" in str(raised.value)


@pytest.mark.parametrize("dtype", ["U8", "I8", "U32", "I32", "F4", "F8_E4M3", "F8_E5M2", "F8_E8M0"])
def test_weights_of_another_dtype_than_a_float_are_refused(dtype: str):
    base = fuzz_seeds.checkpoint_of(LLAMA, fuzz_seeds.config_of(LLAMA))
    name = "model.layers.2.mlp.up_proj.weight"
    changed = dataclasses.replace(base.tensors[name], dtype=dtype)
    alike = {
        n: dataclasses.replace(e, dtype=dtype) if n.endswith("up_proj.weight") else e for n, e in base.tensors.items()
    }
    for tensors in ({**base.tensors, name: changed}, alike):
        with pytest.raises(PlanError, match=rf"up_proj\.weight'? is (stored as )?{dtype}"):
            survey(dataclasses.replace(base, tensors=tensors))


@pytest.mark.parametrize("files", [["model.Q4_K_M.gguf"], ["model-q4.gguf", "mmproj.gguf"], ["weights.h5"]])
def test_a_folder_without_safetensors_is_refused_by_what_it_has(tmp_path: Path, files: list[str]):
    (tmp_path / "config.json").write_text(json.dumps(fuzz_seeds.config_of(LLAMA)))
    for name in files:
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=rf"has only .*{files[0]}.*download the safetensors version"):
        open_checkpoint(tmp_path)
