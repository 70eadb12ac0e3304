"""Config and weights looked at together: what is a model, and what is not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockexpand.checkpoint import Checkpoint, TensorEntry, open_checkpoint
from blockexpand.errors import PlanError
from blockexpand.expansion import expand, plan, survey, verify
from blockexpand.live import bypass, expand_live
from blockexpand.packs import attach, extract
from helpers import MakeBase, edit_config, load

UP2 = "model.layers.2.mlp.up_proj.weight"
Tensors = dict[str, TensorEntry]


def changed(base: Path, change: Callable[[Tensors], object], **config: Any) -> Checkpoint:
    """The checkpoint as it would look with other tensors or another config."""
    checkpoint = open_checkpoint(base)
    tensors = dict(checkpoint.tensors)
    change(tensors)
    return dataclasses.replace(checkpoint, source="my/base", tensors=tensors, config=checkpoint.config | config)


def nothing(tensors: Tensors) -> None:
    """Change no tensor."""


def test_a_survey_of_a_tiny_model(tiny_base: MakeBase):
    facts = survey(open_checkpoint(tiny_base("llama", attention_bias=True)))
    assert (facts.family.name, facts.depth, facts.tied) == ("llama", 4, ())
    assert set(facts.outer) == {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    starts = {t.tail: t.starts for t in facts.tensors_of(0)}
    zero = {tail for tail, start in starts.items() if start == "zero"}
    assert zero == {"self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight"}
    assert len(starts) == 13
    shapes = {t.tail: t.shape for t in facts.tensors_of(0)}
    assert shapes["self_attn.k_proj.weight"] == (16, 32)
    assert all(t.dtype == "BF16" and t.parameter for t in facts.tensors_of(0))


def test_the_layout_digest_is_of_names_shapes_and_dtypes_alone(tiny_base: MakeBase):
    single = survey(open_checkpoint(tiny_base("llama"))).layout_digest
    assert survey(open_checkpoint(tiny_base("llama", sharded=True))).layout_digest == single
    assert survey(open_checkpoint(tiny_base("llama", seed=1))).layout_digest == single
    assert survey(open_checkpoint(tiny_base("llama", blocks=3))).layout_digest != single
    assert survey(open_checkpoint(tiny_base("mistral"))).layout_digest == single


def test_a_tied_model_may_leave_its_head_out_or_store_it(tiny_base: MakeBase):
    base = tiny_base("qwen2", tie_word_embeddings=True)
    assert "lm_head.weight" not in survey(open_checkpoint(base)).outer

    def store(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    stored = survey(changed(base, store))
    assert "lm_head.weight" in stored.outer
    assert stored.tied == ("lm_head.weight",)


def rename(old: str, new: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def reshape(name: str, **entry: Any) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: dataclasses.replace(tensors[name], **entry)})


def all_blocks(tail: str, **entry: Any) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for i in range(4):
            name = f"model.layers.{i}.{tail}"
            tensors[name] = dataclasses.replace(tensors[name], **entry)

    return change


def drop_block(index: int) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith(f"model.layers.{index}.")]:
            del tensors[name]

    return change


def duplicate_block(new: int) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.3.")]:
            tensors[name.replace(".3.", f".{new}.", 1)] = tensors[name]

    return change


def add(*names: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update(dict.fromkeys(names, tensors[UP2]))


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


BUFFERS = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(4)]
WRONG: list[tuple[str, Callable[[Tensors], object], dict[str, Any], list[str]]] = [
    (
        "deeper config",
        nothing,
        {"num_hidden_layers": 6},
        ["num_hidden_layers 6", "hold 4 blocks", "blocks 4, 5 are missing", "0 to 5"],
    ),
    (
        "shallower config",
        nothing,
        {"num_hidden_layers": 2},
        ["num_hidden_layers 2", "blocks 2, 3 are too many"],
    ),
    (
        "a hole and a surplus",
        lambda t: (duplicate_block(12)(t), drop_block(1)(t)),
        {},
        ["blocks 1 are missing (model.layers.1.*) and blocks 12 are too many (in model.safetensors)"],
    ),
    (
        "outer unknown",
        rename("model.norm.weight", "model.normm.weight"),
        {},
        ["'model.normm.weight'", "'model.norm.weight'"],
    ),
    ("head missing", drop("lm_head.weight"), {}, ["'lm_head.weight' is missing"]),
    (
        "tail unknown",
        add("model.layers.2.mlp.gate.weight"),
        {},
        ["'model.layers.2.mlp.gate.weight'", "mlp.gate_proj.weight"],
    ),
    (
        "bias switched off",
        add("model.layers.0.self_attn.q_proj.bias"),
        {},
        ["'model.layers.0.self_attn.q_proj.bias'", "attention_bias is off"],
    ),
    (
        "bias missing",
        nothing,
        {"attention_bias": True},
        ["'model.layers.0.self_attn.q_proj.bias' is missing"],
    ),
    ("tail missing", drop(UP2), {}, [f"'{UP2}' is missing"]),
    (
        "other shape",
        reshape(UP2, shape=(32, 48)),
        {},
        [f"block 2 has '{UP2}' of shape [32, 48], and block 0 has it of shape [48, 32]"],
    ),
    (
        "whole numbers",
        all_blocks("mlp.up_proj.weight", dtype="I8"),
        {},
        ["stored as I8", "BF16, F16, F32, F64", "quantise the result"],
    ),
    ("buffer in one block", add(BUFFERS[2]), {}, ["block 2 has", "inv_freq", "block 0 has it not at all"]),
    (
        "buffer missing in one",
        add(*BUFFERS[:3]),
        {},
        ["block 3 has 'model.layers.3.self_attn.rotary_emb.inv_freq' not at all"],
    ),
]


@pytest.mark.parametrize(("change", "config", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_weights_that_are_not_the_configs_model_are_refused_by_name(
    tiny_base: MakeBase, change: Callable[[Tensors], object], config: dict[str, Any], words: list[str]
):
    with pytest.raises(PlanError) as raised:
        survey(changed(tiny_base("llama"), change, **config))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("my/base: ")
    for word in words:
        assert word in str(raised.value)


# --- A config and weights that are not of one model are refused, and the entry is named; unusual files are read ---


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"hidden_size": 64}, "hidden_size 64"),
        ({"vocab_size": 95}, "vocab_size 95"),
        ({"intermediate_size": 40}, "intermediate_size 40"),
        ({"num_key_value_heads": 1}, "num_key_value_heads 1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_key_value_heads": 0}, "num_key_value_heads 0"),
        ({"rope_theta": float("nan")}, "rope_theta nan"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_parameters.rope_theta 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
    ],
)
def test_an_entry_that_the_weights_contradict_is_named(
    own_base: MakeBase, tmp_path: Path, entries: dict[str, Any], named: str
) -> None:
    base = own_base("llama", sharded=False)
    edit_config(base, **entries)
    with pytest.raises(PlanError, match=named):
        expand(base, tmp_path / "out", plan(base, 1))
    assert not (tmp_path / "out").exists()


def test_a_tied_pair_that_differs_is_refused(own_base: MakeBase, tmp_path: Path) -> None:
    base = own_base("llama", sharded=False, tie_word_embeddings=True)
    edit_weights(base, lambda t: t.update({HEAD: t[EMBED].clone()}))
    expand(base, tmp_path / "equal", plan(base, 1), prove=True)
    edit_weights(base, lambda t: t.update({HEAD: t[EMBED] + 1}))
    with pytest.raises(PlanError, match="'lm_head.weight' in .* is not .*tie_word_embeddings true"):
        expand(base, tmp_path / "out", plan(base, 1))
    assert not (tmp_path / "out").exists()


def test_a_tied_pair_under_its_other_name_works_end_to_end(own_base: MakeBase, tmp_path: Path) -> None:
    """What one published model has (tinystories656k): `lm_head.weight` alone."""
    base = own_base("llama", sharded=False, tie_word_embeddings=True)
    usual = plan(base, 2)
    edit_weights(base, lambda t: t.update({HEAD: t.pop(EMBED)}))
    made = plan(base, 2)
    assert made.cost == usual.cost
    expand(base, tmp_path / "out", made, prove=True)
    assert HEAD in open_checkpoint(tmp_path / "out").tensors
    model, tokens = load(base, torch.float32), torch.arange(20)[None]
    expected = model(tokens).logits
    deeper = expand_live(model, made)
    with bypass(deeper):
        assert torch.equal(deeper(tokens).logits, expected)
    extract(tmp_path / "out", tmp_path / "pack")
    attach(base, [tmp_path / "pack"], tmp_path / "attached")
    assert verify(base, tmp_path / "attached").passed


def test_one_block_in_another_dtype_is_a_kind_of_its_own(own_base: MakeBase, tmp_path: Path) -> None:
    base = own_base("llama", sharded=False)
    prefix = "model.layers.1."
    edit_weights(base, lambda t: t.update({n: x.float() for n, x in t.items() if n.startswith(prefix)}))
    found = survey(open_checkpoint(base))
    assert [kind.blocks for kind in found.kinds] == [(0, 2, 3), (1,)]
    record = expand(base, tmp_path / "out", plan(base, after=(1, 3)), prove=True)
    assert record.proof is not None
    assert record.proof.passed
    tensors = open_checkpoint(tmp_path / "out").tensors
    assert tensors["model.layers.2.mlp.up_proj.weight"].dtype == "F32"
    assert tensors["model.layers.5.mlp.up_proj.weight"].dtype == "BF16"


def test_the_first_spelling_of_llamas_class_is_served(own_base: MakeBase) -> None:
    base = own_base("llama")
    edit_config(base, architectures=["LLaMAForCausalLM"])
    assert json.loads((base / "config.json").read_text())["architectures"] == ["LLaMAForCausalLM"]
    assert plan(base, 1).base.family == "llama"
