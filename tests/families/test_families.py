"""Family files: read strictly, true to transformers, and exact about names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockexpand import families
from blockexpand.errors import FamilyError, RecordError
from blockexpand.families import Family, family_for, known_families, tail_matches
from blockexpand.records import from_plain
from helpers import tiny_config

DATA = Path(families.__file__).parent / "data"


def config_of(family: str = "llama", **settings: Any) -> dict[str, Any]:
    return tiny_config(family, **settings).to_dict() | {"architectures": None}


def plain_family(name: str) -> dict[str, Any]:
    return tomllib.loads((DATA / f"{name}.toml").read_text())


@given(block=st.integers(0, 999_999), tail=st.text("abn_.0", min_size=1))
def test_a_name_is_taken_apart_as_it_was_put_together(block: int, tail: str):
    family = known_families()["llama"]
    place = family.locate(family.name_of(block, tail))
    assert (place.block, place.tail) == (block, tail)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.03.mlp.up_proj.weight",
        "model.layers.-1.mlp.up_proj.weight",
        "model.layers.3",
        "model.layers.3.",
        "model.layers..mlp.up_proj.weight",
        "model.layers.x.mlp.up_proj.weight",
        "model.layers.٣.mlp.up_proj.weight",
        "model.layers.1234567.mlp.up_proj.weight",
        "model.layersx.3.mlp.up_proj.weight",
        "xmodel.layers.3.mlp.up_proj.weight",
        "lm_head.weight",
    ],
)
def test_what_only_looks_like_a_block_is_outside_the_blocks(name: str):
    place = known_families()["llama"].locate(name)
    assert (place.block, place.tail) == (None, name)


def test_a_pattern_takes_whole_numbers_and_nothing_else():
    pattern = "mlp.experts.{n}.w2.weight"
    assert tail_matches(pattern, "mlp.experts.0.w2.weight")
    assert tail_matches(pattern, "mlp.experts.31.w2.weight")
    for tail in (
        "mlp.experts.03.w2.weight",
        "mlp.experts.x.w2.weight",
        "mlp.experts.1.w2.weightx",
        "mlp.experts.1.w2xweight",
    ):
        assert not tail_matches(pattern, tail)


# --- strictness of the files --------------------------------------------------------------------------


def test_a_writer_the_block_does_not_have_is_refused():
    plain = plain_family("llama")
    plain["block"]["writers"] = ["mlp.up.weight"]
    with pytest.raises(RecordError, match=r"llama\.toml\.block\.writers: .*'mlp\.up\.weight'"):
        from_plain(Family, plain, where="llama.toml")


# --- configs that are refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"auto_map": {"AutoModel": "modeling.X"}}, ["auto_map", "modeling.X", "without remote code"]),
        *(
            ({"quantization_config": {"quant_method": method}}, [f"quantised (quantization_config: '{method}'"])
            for method in ("gptq", "awq", "bitsandbytes", "mxfp4", "compressed-tensors", "fbgemm_fp8", "FP8")
        ),
        ({"quantization_config": "int4"}, ["quantization_config: 'int4'", "unquantised"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config: {'bits': 4}"]),
        ({"compression_config": {"quant_method": "x"}}, ["compression_config: 'x'"]),
        ({"quantization": {"group_size": 64, "bits": 4}}, ["quantization: {'group_size': 64, 'bits': 4}"]),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, ["text_config.quantization_config: 'awq'"]),
        ({"model_type": "lama"}, ["'lama'", "did you mean 'llama'"]),
        ({"model_type": "xlstm"}, ["unknown model family 'xlstm'", "cannot be used", "docs/families.md"]),
        ({"model_type": "rwkv"}, ["'rwkv' cannot be expanded", "halves the residual stream", "another base"]),
        ({"model_type": None}, ["model_type None", "llama"]),
        ({"model_type": 7}, ["model_type 7"]),
        ({"vision_config": {"depth": 2}, "model_type": "llava"}, ["'vision_config'", "'llava'", "text-only"]),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            ["LlamaForSequenceClassification", "LlamaForCausalLM"],
        ),
        ({"num_hidden_layers": None}, ["num_hidden_layers is None"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0", "1 or more"]),
        ({"num_hidden_layers": "4"}, ["num_hidden_layers is '4'"]),
        ({"num_hidden_layers": True}, ["num_hidden_layers is True"]),
        ({"no_rope_layers": [1, 1, 1, 0]}, ["'no_rope_layers'", "each of the 4 blocks", "layer_types"]),
        ({"extra": {"sizes": [1, 2, 3, 4]}}, ["'extra.sizes'", "4 blocks"]),
        ({"per_layer_config": {"0": {}, "3": {}}}, ["'per_layer_config'"]),
    ],
)
def test_what_no_family_takes_is_refused_by_name_and_value(entries: dict[str, Any], words: list[str]):
    with pytest.raises(FamilyError) as raised:
        family_for(config_of() | entries, "my/model")
    message = str(raised.value)
    assert "\n" not in message
    if "num_hidden_layers" not in entries:
        assert message.startswith("my/model: ")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "entries",
    [
        {"eos_token_id": [1, 2, 3, 4]},
        {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0, 1.0, 1.0, 1.0]}},
        {"layer_types": ["full_attention"] * 4},
        {"other": [1, 2, 3]},
        {"other": {"a": 1}},
        {"label2id": {"0": 1}},
        {"other": {"sizes": {"0": 1}}},
        {"vision_config": None},
        {"quantization_config": None},
    ],
)
def test_lists_that_are_not_per_block_do_not_stand_in_the_way(entries: dict[str, Any]):
    assert family_for(config_of() | entries, "m").name == "llama"


def test_a_switch_that_is_neither_on_nor_off_is_refused():
    family = family_for(config_of(), "m")
    with pytest.raises(FamilyError, match=r"attention_bias is 'yes'; expected true or false"):
        family.required_tails(config_of() | {"attention_bias": "yes"})
    assert family.required_tails(config_of() | {"attention_bias": None}) == family.block.required
