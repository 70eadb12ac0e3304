"""A config and weights that are not of one model are refused, and the entry is named; unusual files are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import PlanError
from blockexpand.expansion import expand, plan, survey, verify
from blockexpand.live import bypass, expand_live
from blockexpand.packs import attach, extract
from helpers import MakeBase, edit_config, load

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
