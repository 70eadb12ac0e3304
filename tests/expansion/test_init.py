"""Ablations of the start: plain copies, and random matrices. No identity, and said so; the base inside is untouched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockexpand.errors import LiveError, PlanError, RecordError
from blockexpand.expansion import draw, expand, plan, verify
from blockexpand.live import bypass, expand_live, writers
from blockexpand.records.plan import read_plan
from helpers import MakeBase, edit_json, load, tree

TOKENS = torch.arange(5, 25)[None]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def test_a_copy_has_its_donors_bytes_everywhere_and_is_another_function(tiny_base: MakeBase, tmp_path: Path):
    base = tiny_base("llama")
    made = plan(base, 2, init="copy")
    expand(base, tmp_path / "out", made)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for block in made.new_blocks:
        for tensor in made.tensors_of(0):
            new, old = (f"model.layers.{i}.{tensor.tail}" for i in (block.position, made.old_to_new[block.donor]))
            assert tensors[new].equal(tensors[old])
    with torch.no_grad():
        assert not torch.equal(load(base)(TOKENS).logits, load(tmp_path / "out")(TOKENS).logits)
    proof = verify(base, tmp_path / "out")
    assert proof.passed, proof.lines
    assert any("with the new blocks bypassed, logits are the base's" in check.name for check in proof.checks)
    assert not any("residual writers" in check.name for check in proof.checks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_matrices_are_drawn_anew_and_the_same_each_time(tiny_base: MakeBase, tmp_path: Path, dtype: torch.dtype):
    base = tiny_base("llama", dtype=dtype, sharded=True)
    made = plan(base, 2, init="random")
    expand(base, tmp_path / "out", made)
    assert verify(base, tmp_path / "out").passed
    expand(base, tmp_path / "again", made)
    assert tree(tmp_path / "out") == tree(tmp_path / "again")
    block = load(tmp_path / "out").get_decoder().layers[made.new_positions[0]]
    donor = load(base).get_decoder().layers[made.new_blocks[0].donor]
    weights = torch.cat([p.detach().float().flatten() for p in block.parameters() if p.ndim > 1])
    assert abs(float(weights.std()) - 0.02) < 5e-4
    assert abs(float(weights.mean())) < 5e-4
    assert block.input_layernorm.weight.equal(donor.input_layernorm.weight)


def test_what_is_no_identity_says_so(tiny_base: MakeBase, tmp_path: Path):
    made = plan(tiny_base("llama"), 1, init="copy")
    assert "new blocks start as plain copies: an ablation" in draw(made).plain
    assert "random matrices" in draw(plan(tiny_base("llama"), 1, init="random")).plain
    made.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made
    edit_json(tmp_path / "plan.json", lambda data: data.pop("init"))
    with pytest.raises(RecordError, match="expected a tensor that starts at zero"):
        read_plan(tmp_path / "plan.json")
    edit_json(tmp_path / "plan.json", lambda data: data.update(init="random"))
    edit_json(tmp_path / "plan.json", lambda data: data["kinds"][0]["tensors"][0].update(starts="zero"))
    with pytest.raises(RecordError, match="expected none at zero with random"):
        read_plan(tmp_path / "plan.json")


def test_an_unknown_start_is_refused_with_the_nearest(tiny_base: MakeBase):
    with pytest.raises(PlanError, match=r"unknown init 'copies'; expected one of identity, .* did you mean 'copy'"):
        plan(tiny_base("llama"), 1, init="copies")  # type: ignore[arg-type]


@torch.no_grad()
def test_a_model_in_memory_can_start_from_copies(tiny_base: MakeBase):
    base = tiny_base("llama", dtype=torch.float32)
    model = load(base)
    expected = model(TOKENS).logits
    expand_live(model, plan(base, 2, init="copy"))
    assert not torch.equal(model(TOKENS).logits, expected)
    assert not writers(model)
    with bypass(model):
        assert torch.equal(model(TOKENS).logits, expected)
    with pytest.raises(LiveError, match="init 'random', and those numbers are drawn by expand"):
        expand_live(load(base), plan(base, 1, init="random"))
