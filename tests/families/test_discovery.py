"""Families without a file: found by structure on an architecture of our own, and on types of transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import made_up
import pytest
import torch

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import ExpansionError, FamilyError, PlanError
from blockexpand.expansion import draw, expand, expander, plan, verify
from blockexpand.families import Family, family_for
from blockexpand.families.modules import load_model
from blockexpand.live import bypass, expand_live, freeze, load, tensors_on_disk
from blockexpand.records.expansion import Check
from blockexpand.records.plan import read_plan

made_up.register()


def found(**settings: Any) -> Family:
    return family_for(made_up.config_of(**settings), "my/model")


def reason(**settings: Any) -> str:
    with pytest.raises(FamilyError) as raised:
        found(**settings)
    message = str(raised.value)
    assert message.startswith("my/model: unknown model family 'quaint': it has no file, and by its structure it cannot")
    assert "\n" not in message
    assert "write a family file" in message
    return message


WRITERS = ("down.bias", "down.weight", "gaze.give.bias", "gaze.give.weight")


def test_what_writes_to_the_stream_is_found_weights_and_biases():
    family = found()
    assert family.discovered
    assert family.name == "quaint"
    assert (family.depth_key, family.stack.tensors, family.stack.module) == ("storeys", "floors", "floors")
    assert sorted(family.block.writers) == sorted(WRITERS)
    assert family.block.minus_one == ()
    assert "gaze.take.bias" in family.block.required
    assert family.outer.required == ("ear.weight", "roof.bias", "roof.weight")
    assert [(t.tensor, t.source, t.switch_default) for t in family.outer.tied] == [
        ("voice.weight", "ear.weight", False)
    ]
    assert family.outer.matrices == ("voice.weight",)


def test_a_norm_behind_the_branch_is_what_is_silenced_at_minus_one():
    family = found(mischief="post norm")
    assert family.block.writers == family.block.minus_one == ("after.excess",)


def test_lists_with_an_item_a_block_are_rules():
    assert [(r.kind, r.key) for r in found(manners=["bold", "shy", "bold", "shy"]).per_layer] == [
        ("copy-from-donor", "manners")
    ]
    (rule,) = found(shy_every=2).per_layer
    assert (rule.kind, rule.key, rule.items) == ("written-out", "manners", ("bold", "shy", "bold", "shy"))


def test_blocks_that_differ_in_tensors_are_a_choice():
    family = found(shy_every=2)
    (choice,) = family.block.choices
    assert [option.tensors for option in choice.options] == [("down.bias",), ()]


@pytest.mark.parametrize(
    ("mischief", "words"),
    [
        ("scaled stream", "gives zeros, not its input: its output is not x + f(x)"),
        ("constant", "does not give back its input: its output is not x + f(x)"),
        ("index", "a deeper model with silent copies of its blocks gives other logits"),
        ("another name", "its blocks keep their index where it cannot be renumbered"),
        ("two lists", "storeys is the length of floors and doors"),
        ("depth outside", "outside the blocks weights changes with the depth: [8]"),
        ("backwards", "its 4 blocks do not run once each in their order (but [3, 2, 1, 0]"),
        ("fails", "a tiny model of it does not run: the house has no door"),
        ("not finite", "logits that are not finite"),
        ("shared", "one block stands at several places of the stack"),
        ("index with a cache", "without a cache or through it: its computation uses a block's index or the depth"),
        ("depth after", "a deeper model with silent copies of its blocks gives other logits"),
        ("not written", "transformers cannot write it: no paper"),
    ],
)
def test_what_is_no_identity_is_refused_with_the_reason(mischief: str, words: str):
    assert words in reason(mischief=mischief)


def test_a_config_that_its_class_refuses_is_refused():
    assert "transformers cannot build it" in reason(eyes=2, girth=16, manners=["bold"])
    with pytest.raises(FamilyError, match="transformers refuses the config: .*hidden_size"):
        family_for(EXAONE | {"hidden_size": "wide"}, "m")
    assert "no config entry could be found that states the number of blocks" in reason(storeys=0)


def test_a_depth_that_nobody_would_build_is_refused():
    with pytest.raises(FamilyError, match="num_hidden_layers is 1000000; at most 1000 blocks"):
        family_for(EXAONE | {"num_layers": 1_000_000}, "m")


def test_a_type_that_transformers_does_not_know_is_refused_with_the_nearest_name():
    with pytest.raises(FamilyError, match=r"'quiant'.*has no causal language model of this type.*docs/families\.md"):
        family_for({"model_type": "quiant"}, "m")


def test_it_is_planned_expanded_proved_and_lives_in_memory(tmp_path: Path):
    base = made_up.write(tmp_path / "base", shy_every=2)
    made = plan(base, 2)
    assert made.base.discovered
    assert made.config_changes == {"storeys": 6, "manners": ["bold", "shy", "shy", "bold", "shy", "shy"]}
    words = "family quaint: no file; found by structure; the proof decides"
    assert made.notes[0].startswith(words)
    assert words in draw(made).plain
    made.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["base"]["discovered"] is True
    assert read_plan(tmp_path / "plan.json") == made
    record = expand(base, tmp_path / "out", tmp_path / "plan.json", prove=False)
    assert record.proof is not None
    assert record.proof.passed
    assert verify(base, tmp_path / "out").passed
    lives_in_memory(base, tmp_path / "out")


@torch.no_grad()
def lives_in_memory(base: Path, out: Path) -> None:
    tokens = torch.arange(3, 14).unsqueeze(0)
    model = load_model(base, dtype=torch.float32).requires_grad_(False)
    expected = model(tokens, use_cache=False).logits
    expand_live(model, plan(base, 2))
    assert torch.equal(model(tokens, use_cache=False).logits, expected)
    model, made = load(out)
    for _, parameter in freeze(model):
        parameter.add_(0.1)
    assert not torch.equal(model(tokens, use_cache=False).logits, expected)
    with bypass(model):
        assert torch.equal(model(tokens, use_cache=False).logits, expected)
    files = open_checkpoint(out)
    assert set(tensors_on_disk(model, family_for(files.config, "m", files.tensors))) <= set(files.tensors)
    assert made.new_positions == (2, 5)


def test_nothing_is_written_when_the_proof_fails_though_none_was_asked_for(tmp_path: Path, monkeypatch: Any):
    base = made_up.write(tmp_path / "base")
    prove = expander.prove_checkpoints

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        proof = prove(*args, **kwargs)
        return dataclasses.replace(proof, checks=(*proof.checks, Check(name="spoilt", passed=False, figure="by 7")))

    monkeypatch.setattr(expander, "prove_checkpoints", spoilt)
    with pytest.raises(ExpansionError, match=r"the proof failed.*spoilt: by 7.*family 'quaint' has no file"):
        expand(base, tmp_path / "out", plan(base, 1), prove=False)
    assert not (tmp_path / "out").exists()


def test_a_placement_that_changes_kinds_is_refused_with_those_that_work(tmp_path: Path):
    base = made_up.write(tmp_path / "base", mischief="first two")
    words = "block 1 has temper 'shy', and as block 2 of 5 it would have 'bold'.*use blocks=1 placement=.*suffix"
    with pytest.raises(PlanError, match=words):
        plan(base, 1, placement="prefix")
    assert plan(base, 1, placement="suffix").new_positions == (4,)


def test_a_list_that_config_json_leaves_to_the_class_is_written_out(tmp_path: Path):
    base = made_up.write(tmp_path / "base", shy_every=2)
    config = json.loads((base / "config.json").read_text())
    del config["manners"]
    (base / "config.json").write_text(json.dumps(config))
    made = plan(base, 1, placement="suffix")
    assert made.config_changes["manners"] == ["bold", "shy", "bold", "shy", "shy"]


SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
EXAONE = SIZES | {"model_type": "exaone", "num_layers": 4, "num_key_value_heads": 2, "head_dim": 8}


def test_names_are_those_of_the_files_where_transformers_renames():
    family = family_for(EXAONE, "m")
    assert family.depth_key == "num_layers"
    assert family.stack.tensors == "transformer.h"
    assert family.stack.module == "model.layers"
    assert sorted(family.block.writers) == ["attn.attention.out_proj.weight", "mlp.c_proj.weight"]
    assert family.block.name_in_memory("mlp.c_proj.weight") == "mlp.down_proj.weight"


def test_experts_are_numbered_and_blocks_of_two_kinds_a_choice():
    sizes = SIZES | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_key_value_heads": 2}
    shared = {"shared_expert_intermediate_size": 16, "head_dim": 8, "sliding_window": 8}
    config = (
        sizes
        | shared
        | {"model_type": "laguna", "num_hidden_layers": 5, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 3}
    )
    family = family_for(config | {"num_attention_heads_per_layer": [4] * 5}, "m")
    assert "mlp.experts.{n}.down_proj.weight" in family.block.writers
    assert family.block.experts
    assert ["mlp.down_proj.weight" in o.tensors for c in family.block.choices for o in c.options] == [True, False]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert", "num_hidden_layers": 4, "is_decoder": True}, "gives zeros, not its input"),
        (
            {"model_type": "minicpm3", "num_hidden_layers": 4, "num_key_value_heads": 4},
            "blocks change wherever a copy is put: block 0 has residual_scale",
        ),
        (
            {"model_type": "sarvam_moe", "num_hidden_layers": 4, "num_key_value_heads": 2, "head_dim": 8},
            "files keep model.layers.0.attention.query_key_value.weight as one tensor",
        ),
        ({"model_type": "nemotron_h", "layers_block_type": ["mlp", "moe"]}, "the length of layers_block_type"),
    ],
)
def test_types_of_transformers_that_cannot_be_used_are_refused(config: dict[str, Any], words: str):
    with pytest.raises(FamilyError) as raised:
        family_for(SIZES | config, "m")
    assert words in str(raised.value)


def test_tensors_that_only_large_blocks_have_are_refused():
    assert "which tensors a block has depends on its sizes, e.g. extra" in reason(mischief="sized tensors", girth=256)
