"""What families state beyond names: rules for periods and indices, spellings, extra blocks, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from zoo import ZOO, config_of, write

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import FamilyError, PlanError, RecordError
from blockexpand.expansion import expand, plan, rewrite, survey, verify
from blockexpand.families import BlockFacts, family_for, known_families, refused_model_types
from blockexpand.records import from_plain
from blockexpand.records.plan import read_plan
from helpers import edit_config, edit_json, load

ROWS = {row.family: row for row in ZOO}
FULL, SLIDING = "full_attention", "sliding_attention"


def plain(name: str, **entries: Any) -> dict[str, Any]:
    """A family's tiny config as config.json has it, with entries set; OUT takes one out."""
    values = config_of(ROWS[name]).to_dict() | {"architectures": None} | entries
    return {key: value for key, value in values.items() if value is not ...}


def changed(name: str, sources: list[int], **entries: Any) -> dict[str, Any]:
    config = plain(name, **entries)
    return rewrite(family_for(config, name), config, sources).changes


def in_class(name: str, changes: dict[str, Any], **entries: Any) -> Any:
    """What the class makes of the rewritten config."""
    values = {**plain(name, **entries), **changes}
    values.pop("model_type")
    return CONFIG_MAPPING[ROWS[name].model_type](**values)


# --- per-layer entries: every old block keeps its kind, every new one has its donor's -------------------


@pytest.mark.parametrize(
    ("name", "key", "sources", "entries", "period", "last", "others"),
    [
        ("gemma2", "layer_types", [0, 1, 1, 2, 3], {}, 2, FULL, SLIDING),
        ("gpt_oss", "layer_types", [0, 0, 1, 2, 3], {}, 2, FULL, SLIDING),
        ("gemma3_text", "layer_types", [*range(8), 5], {}, 6, FULL, SLIDING),
        ("gemma3_text", "layer_types", [*range(8), 2], {"sliding_window_pattern": 3}, 3, FULL, SLIDING),
        ("cohere2", "layer_types", [0, 1, 2, 3, 3, 4, 5, 6, 7], {}, 4, FULL, SLIDING),
        ("olmo3", "layer_types", [0, 1, 2, 3, 3, 4, 5, 6, 7], {}, 4, FULL, SLIDING),
        ("exaone4", "layer_types", [0, 1, 2, 3, 3, 4, 5, 6, 7], {}, 4, FULL, SLIDING),
        ("qwen3_next", "layer_types", [0, 1, 2, 3, 3, 4, 5, 6, 7], {}, 4, FULL, "linear_attention"),
        ("smollm3", "no_rope_layers", [0, 1, 2, 3, 3, 4, 5, 6, 7], {}, 4, 0, 1),
        ("llama4_text", "no_rope_layers", [0, 1, 2, 3, 3, 4, 5, 6, 7], {"no_rope_layers": []}, 4, 0, 1),
    ],
)
def test_a_list_that_the_class_derives_is_written_out(
    name: str, key: str, sources: list[int], entries: dict[str, Any], period: int, last: Any, others: Any
):
    missing = {key: ..., **entries}
    expected = [others if (source + 1) % period else last for source in sources]
    base = in_class(name, {}, **missing).to_dict()[key]
    assert base == [others if (i + 1) % period else last for i in range(len(base))]
    changes = changed(name, sources, **missing)
    assert changes[key] == expected
    assert in_class(name, changes, **missing).to_dict()[key] == expected


def test_a_period_that_no_longer_describes_the_stack_is_said():
    config = plain("cohere2", layer_types=..., sliding_window_pattern=4)
    family = family_for(config, "m")
    assert "sliding_window_pattern stays 4" in rewrite(family, config, [0, 1, 2, 3, 3, 4, 5, 6, 7]).notes[0]
    assert rewrite(family, config, [*range(8), *range(4, 8)]).notes == ()


def test_qwen2_moe_slides_by_turns_below_a_threshold_when_windows_are_on():
    on = {"layer_types": ..., "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    changes = changed("qwen2_moe", [0, 0, 1, 2, 3], **on)
    assert changes["layer_types"] == [SLIDING, SLIDING, FULL, SLIDING, FULL]
    assert in_class("qwen2_moe", {}, **on).layer_types == [SLIDING, FULL, SLIDING, FULL]
    assert "layer_types" not in changed("qwen2_moe", [0, 0, 1, 2, 3], **on | {"use_sliding_window": False})


@pytest.mark.parametrize(
    ("name", "entries", "sources", "expected"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, [0, 1, 1, 2, 3], {"mlp_only_layers": [1, 2]}),
        ("qwen3_moe", {"mlp_only_layers": [1]}, [0, 0, 1, 2, 3], {"mlp_only_layers": [2]}),
        (
            "qwen3_moe",
            {"mlp_only_layers": [], "decoder_sparse_step": 2},
            [0, 1, 1, 2, 3],
            {"mlp_only_layers": [0, 3], "decoder_sparse_step": 1},
        ),
        ("bamba", {"attn_layer_indices": [1, 3]}, [0, 0, 1, 2, 3], {"attn_layer_indices": [2, 4]}),
        ("lfm2", {"layer_types": ..., "full_attn_idxs": [1, 3]}, [0, 1, 1, 2, 3], {"full_attn_idxs": [1, 2, 4]}),
        (
            "llama4_text",
            {"moe_layers": ..., "interleave_moe_layer_step": 2},
            [0, 1, 1, *range(2, 8)],
            {"moe_layers": [1, 2, 4, 6, 8]},
        ),
        ("glm4_moe", {"first_k_dense_replace": 2}, [0, 1, 1, 2, 3, 4, 5], {"first_k_dense_replace": 3}),
        ("glm4_moe", {"first_k_dense_replace": 2}, [0, 1, 2, 3, 4, 5, 5], {}),
        (
            "ernie4_5_moe",
            {"moe_layer_start_index": 2, "moe_layer_end_index": -1},
            [0, 1, 1, 2, 3, 4, 5],
            {"moe_layer_start_index": 3, "moe_layer_end_index": 6},
        ),
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 2]]},
            [0, 1, 1, 2, 3],
            {
                "attention_types": [[["global", "local", "local", "global", "local"], 1]],
                "attention_layers": ["global", "local", "local", "global", "local"],
            },
        ),
        ("jamba", {}, [*range(8), *range(4, 8)], {}),
    ],
)
def test_indices_thresholds_and_periods_say_the_same_of_the_deeper_stack(
    name: str, entries: dict[str, Any], sources: list[int], expected: dict[str, Any]
):
    changes = changed(name, sources, **entries)
    depth_key = known_families()[name].depth_key
    assert changes.pop(depth_key) == len(sources)
    changes.pop("layer_types", None)
    changes.pop("no_rope_layers", None)
    assert changes == expected


def test_where_numbers_cannot_say_it_the_nearest_placements_that_work_are_named(tmp_path: Path):
    base = write(ROWS["jamba"], tmp_path / "base")
    with pytest.raises(PlanError) as raised:
        plan(base, 2)
    message = str(raised.value)
    for word in ("expert_layer_period 2, expert_layer_offset 1", "each new one to have its donor's", "use blocks="):
        assert word in message
    assert "\n" not in message
    named = [
        dict(p.split("=") for p in item.split() if p != "with") for item in message.partition("use ")[2].split(" or ")
    ]
    for request in named:
        per_group = int(request.get("per_group", 1))
        assert plan(base, int(request["blocks"]), placement=request["placement"], per_group=per_group).new_blocks


@pytest.mark.parametrize(
    ("name", "entries", "words"),
    [
        ("jamba", {"attn_layer_period": 0}, ["attn_layer_period is 0", "1 or more"]),
        ("jamba", {"attn_layer_offset": "2"}, ["attn_layer_offset is '2'", "a whole number"]),
        ("glm4_moe", {"first_k_dense_replace": True}, ["first_k_dense_replace is True", "a whole number"]),
        ("exaone4", {"layer_types": ..., "sliding_window_pattern": 0}, ["sliding_window_pattern is 0", "1 or more"]),
        ("bamba", {"attn_layer_indices": "13"}, ["attn_layer_indices is '13'", "block indices"]),
        ("qwen3_moe", {"decoder_sparse_step": 0}, ["decoder_sparse_step is 0", "1 or more"]),
        ("gpt_neo", {"attention_types": [["global", 3]]}, ["attention_types is [['global', 3]]", "4 in"]),
        ("gemma2", {"layer_types": [FULL]}, ["layer_types has 1 items", "each of the 4 blocks"]),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "2", "layer_types": ...},
            ["max_window_layers is '2'"],
        ),
    ],
)
def test_entries_that_make_no_sense_are_refused_with_their_value(name: str, entries: dict[str, Any], words: list[str]):
    with pytest.raises(PlanError) as raised:
        changed(name, [0, 1, 2, 3, 3], **entries)
    for word in words:
        assert word in str(raised.value)


# --- names ----------------------------------------------------------------------------------------------


def test_files_that_spell_their_names_without_the_models_prefix_are_read_and_written_so(tmp_path: Path):
    base = write(ROWS["gpt2"], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, base / "model.safetensors")
    expand(base, tmp_path / "out", plan(base, 2), prove=True)
    assert "h.5.mlp.c_proj.weight" in open_checkpoint(tmp_path / "out").tensors


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4_moe"])
def test_blocks_for_further_tokens_are_renumbered_after_the_last_block(tmp_path: Path, name: str):
    base = write(ROWS[name], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    extra = {n.replace("layers.5.", "layers.6."): t.clone() for n, t in tensors.items() if ".layers.5." in n}
    extra["model.layers.6.eh_proj.weight"] = tensors["model.norm.weight"].clone()
    save_file({**tensors, **extra}, base / "model.safetensors", metadata={"format": "pt"})
    made = plan(base, 2)
    expand(base, tmp_path / "out", made)
    assert verify(base, tmp_path / "out").passed
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["model.layers.8.eh_proj.weight"].equal(tensors["model.norm.weight"])
    assert not any(".layers.9." in n for n in after)
    edit_config(base, num_nextn_predict_layers=0)
    with pytest.raises(PlanError, match="blocks 6 are too many"):
        survey(open_checkpoint(base))
    edit_config(base, num_nextn_predict_layers="one")
    with pytest.raises(FamilyError, match="num_nextn_predict_layers is 'one'; expected a number of blocks"):
        survey(open_checkpoint(base))


def test_a_block_that_is_half_dense_and_half_experts_is_refused(tmp_path: Path):
    base = write(ROWS["qwen3_moe"], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.2.mlp.gate.weight"]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(PlanError, match=r"block 2 has of the feed-forward none whole"):
        survey(open_checkpoint(base))


def test_a_missing_expert_is_named(tmp_path: Path):
    base = write(ROWS["mixtral"], tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    for name in [n for n in tensors if ".experts.1.w2." in n]:
        del tensors[name]
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(PlanError, match=r"'model\.layers\.0\..*experts\.1\.w2\.weight' is missing, and higher"):
        survey(open_checkpoint(base))


def test_a_plan_of_several_kinds_is_read_as_it_was_written(tmp_path: Path):
    made = plan(write(ROWS["qwen3_next"], tmp_path / "base"), 3)
    assert [kind.blocks for kind in made.kinds] == [(0, 2, 4, 5, 6), (1,), (3, 7)]
    made.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made

    def lose_a_block(data: dict[str, Any]) -> None:
        data["kinds"][0]["blocks"].remove(4)

    edit_json(tmp_path / "plan.json", lose_a_block)
    with pytest.raises(RecordError, match="kinds: expected each block of the base once"):
        read_plan(tmp_path / "plan.json")


def test_only_the_text_stack_grows_and_the_rest_is_copied_through(tmp_path: Path):
    base = write(ROWS["gemma3"], tmp_path / "base")
    made = plan(base, 2)
    assert made.config_changes["text_config.num_hidden_layers"] == 10
    assert len(made.config_changes["text_config.layer_types"]) == 10
    expand(base, tmp_path / "out", made)
    old, new = open_checkpoint(base).config, open_checkpoint(tmp_path / "out").config
    assert list(new) == list(old)
    assert list(new["text_config"]) == list(old["text_config"])
    assert new["vision_config"] == old["vision_config"]
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "out"))
    towers = [n for n in before if "vision_tower" in n]
    assert towers
    assert all(after[n].equal(before[n]) for n in towers)


def test_text_settings_at_the_top_are_rewritten_at_the_top(tmp_path: Path):
    base = write(ROWS["qwen2_5_vl"], tmp_path / "base")
    edit_json(base / "config.json", lambda c: c.update(c.pop("text_config") | {"model_type": c["model_type"]}))
    made = plan(base, 2)
    assert made.config_changes["num_hidden_layers"] == 6
    expand(base, tmp_path / "out", made)
    assert verify(base, tmp_path / "out").passed


def test_a_text_stack_of_another_family_is_refused():
    config = config_of(ROWS["mistral3"]).to_dict()
    config["text_config"]["model_type"] = "qwen2"
    with pytest.raises(FamilyError, match=r"model_type is 'qwen2', and then its text stack is of another family"):
        family_for(config, "m")
    config["text_config"] = [1]
    with pytest.raises(FamilyError, match=r"text_config is \[1\]; expected the text model's settings"):
        family_for(config, "m")


# --- gains ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "slow"), [("gemma2", True), ("olmo2", True), ("llama", False), ("gpt2", False)])
def test_a_plan_says_which_gains_learn_slowly(name: str, slow: bool, tmp_path: Path) -> None:
    notes = [note for note in plan(write(ROWS[name], tmp_path), 2).notes if "writer_lr_scale: 10" in note]
    assert len(notes) == slow
    assert all("post_feedforward_layernorm.weight" in note for note in notes)


@pytest.mark.parametrize(("name", "gain"), [("gemma2", -1.0), ("gemma3_text", -1.0), ("olmo2", 0.0), ("glm4", 0.0)])
def test_post_norm_families_start_from_silent_gains(tmp_path: Path, name: str, gain: float):
    base = write(ROWS[name], tmp_path / "base")
    made = plan(base, 1, placement="suffix")
    expand(base, tmp_path / "out", made)
    block = load(tmp_path / "out").get_decoder().layers[-1]
    silent = {n for n, p in block.named_parameters() if bool((p == gain).all())}
    assert silent == set(made.zeroed)
    assert all("norm" in n for n in silent)


# --- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", sorted(refused_model_types()))
def test_what_has_no_identity_is_refused_with_the_reason(model_type: str):
    assert model_type in CONFIG_MAPPING
    with pytest.raises(FamilyError) as raised:
        family_for({"model_type": model_type}, "my/model")
    message = str(raised.value)
    assert message.startswith(f"my/model: models of type {model_type!r} cannot be expanded: ")
    assert refused_model_types()[model_type] in message
    assert message.endswith("choose another base")


@pytest.mark.parametrize(
    ("name", "entry", "value", "why"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True, "divided by its index"),
        ("gpt2", "add_cross_attention", True, "encoder"),
        ("opt", "do_layer_norm_before", False, "never the identity"),
        ("bloom", "apply_residual_connection_post_layernorm", True, "never the identity"),
        ("bloom", "slow_but_exact", True, "not proved"),
    ],
)
def test_a_setting_with_which_a_copy_is_no_identity_is_refused(name: str, entry: str, value: bool, why: str):
    assert family_for(plain(name), "m").name == name
    with pytest.raises(FamilyError) as raised:
        family_for(plain(name, **{entry: value}), "m")
    for word in (f"{entry} is {value}", why, f"expected {not value}", "choose another base"):
        assert word in str(raised.value)


def test_code_that_transformers_has_adopted_is_not_run_and_not_in_the_way(tmp_path: Path):
    base = write(ROWS["phi3"], tmp_path / "base")
    published = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    edit_config(base, auto_map=published)
    (base / "modeling_phi3.py").write_text("raise SystemExit('this must not run')")
    made = plan(base, 1)
    assert "never run here" in made.notes[-1]
    expand(base, tmp_path / "out", made)
    assert verify(base, tmp_path / "out").passed
    config = open_checkpoint(base).config
    assert family_for(config | {"auto_map": {"AutoConfig": f"org/copy--{published['AutoConfig']}"}}, "m").name == "phi3"
    for other in ({"AutoModel": "modeling_phi3.Phi3Model2"}, {"AutoModel": ["modeling_phi3.Phi3ForCausalLM"]}, "all"):
        with pytest.raises(FamilyError, match="auto_map .*without remote code"):
            family_for(config | {"auto_map": other}, "m")
    with pytest.raises(FamilyError, match="auto_map"):
        family_for(config | {"auto_map": published, "model_type": "llama"}, "m")


# --- strictness of the files ----------------------------------------------------------------------------

BLOCK: dict[str, Any] = {"required": ["a.weight", "b.weight"], "writers": ["b.weight"]}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"minus_one": ["a.weight"]}, "minus_one: expected one of the writers, got 'a.weight'"),
        ({"in_memory": [{"files": ["c"], "memory": "d"}]}, "in_memory: expected one of the block's own tails"),
        (
            {"in_memory": [{"files": ["a.weight", "b.weight"], "memory": "d"}]},
            "in_memory: expected made of writers alone, or of none, got 'd'",
        ),
    ],
)
def test_a_family_file_that_contradicts_itself_is_refused(entries: dict[str, Any], words: str):
    assert from_plain(BlockFacts, BLOCK).writers == ("b.weight",)
    with pytest.raises(RecordError) as raised:
        from_plain(BlockFacts, BLOCK | entries)
    assert words in str(raised.value)


def test_every_default_of_a_rule_is_what_the_config_class_says():
    wrong = []
    for row in ROWS.values():
        family, own = known_families()[row.family], CONFIG_MAPPING[row.model_type]().to_dict()
        text = family.text(own)
        stated = {g.switch: g.switch_default for g in family.block.switched}
        stated |= {t.switch: t.switch_default for t in family.outer.tied}
        stated |= {rule.key: rule.default for rule in family.only if rule.key != "model_type"}
        for rule in family.per_layer:
            if rule.kind == "threshold":
                stated |= {rule.switch: rule.switch_default, rule.key: rule.key_default}
            if rule.kind == "first":
                stated[rule.key] = rule.default
            if rule.kind == "every":
                stated |= {rule.period_key: rule.period_default, rule.offset_key: rule.offset_default}
            if rule.kind == "between":
                stated[rule.start_key] = rule.start_default
        for key, value in stated.items():
            found = {**own, **text}.get(key, own.get(key))
            if key == "tie_word_embeddings":
                found = own.get(key)
            if found != value:
                wrong.append((row.family, key, value, found))
    assert wrong == []
