"""Expansion on disk: the deeper checkpoint is the base, block for block, and a plain model folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from blockexpand.checkpoint import digest_tensors, open_checkpoint
from blockexpand.errors import ExpansionError, StagingError
from blockexpand.expansion import expand, expander, plan, verify
from blockexpand.families import known_families
from blockexpand.records.expansion import Check, ExpansionRecord, Proof, read_expansion
from blockexpand.records.plan import Plan
from helpers import CHAT_TEMPLATE, MakeBase, edit_config, load, tree

WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, no GQA": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral window": ("mistral", {"sliding_window": 8}),
    "mistral tied": ("mistral", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {}),
    "qwen2 tied windows": ("qwen2", {"tie_word_embeddings": True, **WINDOWS}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 biases windows": ("qwen3", {"attention_bias": True, **WINDOWS}),
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "interleaved": {"blocks": 2},
    "uneven": {"blocks": 3},
    "pairs": {"blocks": 4, "per_group": 2},
    "prefix": {"blocks": 2, "placement": "prefix"},
    "suffix": {"blocks": 3, "placement": "suffix"},
    "explicit": {"after": (-1, 1, 1, 3)},
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]])


def make(base: Path, out: Path, **request: Any) -> ExpansionRecord:
    return expand(base, out, plan(base, **(request or {"blocks": 2})))


def answers(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and a greedy continuation, as anybody would ask for them, without our code."""
    model = load(folder)
    with torch.no_grad():
        logits = model(TOKENS).logits
        continued = model.generate(TOKENS, max_new_tokens=12, do_sample=False, eos_token_id=None)  # pyright: ignore
    return logits, continued


def check_tensors(base: Path, out: Path, made: Plan) -> None:
    """Every tensor is the one it should be, read with the safetensors library alone."""
    old = {k: v for path in base.glob("*.safetensors") for k, v in load_file(path).items()}
    new = {k: v for path in out.glob("*.safetensors") for k, v in load_file(path).items()}
    family = known_families()[made.base.family]
    for entry in made.stack:
        for tensor in made.tensors_of(0):
            found = new.pop(family.name_of(entry.position, tensor.tail))
            donor = old[family.name_of(entry.source, tensor.tail)]
            zero = entry.new is not None and tensor.tail in made.zeroed
            assert found.dtype == donor.dtype
            assert torch.equal(found, torch.zeros_like(donor) if zero else donor)
    outer = {name: tensor for name, tensor in old.items() if ".layers." not in name}
    assert new.keys() == outer.keys()
    assert all(torch.equal(new[name], outer[name]) for name in outer)


@pytest.mark.parametrize("sharded", [False, True], ids=["single", "sharded"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_and_placement_gives_the_bases_tensors_logits_and_words(
    tiny_base: MakeBase, tmp_path: Path, variant: str, placement: str, sharded: bool
):
    family, settings = VARIANTS[variant]
    base = tiny_base(family, sharded=sharded, **settings)
    record = make(base, tmp_path / "out", **PLACEMENTS[placement])
    check_tensors(base, tmp_path / "out", record.plan)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == sharded
    config = AutoConfig.from_pretrained(tmp_path / "out")
    old_config = AutoConfig.from_pretrained(base)
    assert config.num_hidden_layers == 4 + len(record.plan.new_blocks)
    if "layer_types" in old_config.to_dict():
        assert config.layer_types == [old_config.layer_types[source] for source in record.plan.sources]
    # The models are the slow part: each variant meets them at every other placement.
    if (list(PLACEMENTS).index(placement) + list(VARIANTS).index(variant) + sharded) % 2 == 0:
        (logits, words), (new_logits, new_words) = answers(base), answers(tmp_path / "out")
        assert torch.equal(logits, new_logits)
        assert torch.equal(words, new_words)


def test_everything_the_base_had_is_there(own_base: MakeBase, tmp_path: Path):
    base, out = own_base("llama"), tmp_path / "out"
    GenerationConfig(temperature=0.7, do_sample=True, top_k=7).save_pretrained(base)
    (base / "README.md").write_text("a model card")
    (base / "assets").mkdir()
    (base / "assets" / "logo.svg").write_text("<svg/>")
    (base / "pytorch_model.bin").write_text("a pickle")
    record = make(base, out)
    assert record.files_left_out == ("pytorch_model.bin",)
    for name in record.files_copied:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {*record.files_copied, "config.json", "model.safetensors", "blockexpand.json"}
    assert {"README.md", "assets/logo.svg", "generation_config.json", "tokenizer.json"} <= names
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer("the cat").input_ids == AutoTokenizer.from_pretrained(base)("the cat").input_ids
    assert load(out).generation_config.top_k == 7  # pyright: ignore


def test_config_keeps_what_it_does_not_know_in_its_order(own_base: MakeBase, tmp_path: Path):
    base = edit_config(own_base("llama"), my_note={"b": 1, "a": [1e-05, None]}, zeta=3)
    old = json.loads((base / "config.json").read_text())
    make(base, tmp_path / "out")
    new = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(new) == list(old)
    assert {k: v for k, v in new.items() if old[k] != v} == {"num_hidden_layers": 6}


def test_infinity_in_a_config_stays_what_it_is(own_base: MakeBase, tmp_path: Path):
    """As transformers 4 wrote the configs of Mamba-2 and its kin; transformers 5 reads it."""
    base = edit_config(own_base("llama"), time_step_limit=[0.0, float("inf")])
    assert "Infinity" in (base / "config.json").read_text()
    make(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["time_step_limit"] == [0.0, float("inf")]
    assert load(tmp_path / "out").config.time_step_limit == [0.0, float("inf")]
    assert verify(base, tmp_path / "out").passed


def test_the_record_says_what_was_made_from_what(tiny_base: MakeBase, tmp_path: Path):
    import blockexpand

    base = tiny_base("llama")
    made = plan(base, 2)
    returned = expand(base, tmp_path / "out", made)
    record = read_expansion(tmp_path / "out")
    assert record == returned
    assert record.plan == made
    assert record.blockexpand_version == blockexpand.__version__
    digests = digest_tensors(open_checkpoint(base))
    assert record.base_digests == {name: result.digest for name, result in digests.items()}
    assert (record.proof, record.training) == (None, None)


@pytest.mark.parametrize("sharded", [False, True])
def test_expanding_twice_gives_the_same_bytes(tiny_base: MakeBase, tmp_path: Path, sharded: bool):
    base = tiny_base("qwen3", sharded=sharded)
    make(base, tmp_path / "one")
    made = plan(base, 2)
    made.save(tmp_path / "plan.json")
    expand(str(base), str(tmp_path / "two"), str(tmp_path / "plan.json"))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_an_expanded_model_can_be_expanded_again(tiny_base: MakeBase, tmp_path: Path):
    make(tiny_base("llama"), tmp_path / "one")
    record = make(tmp_path / "one", tmp_path / "two", blocks=3)
    assert record.plan.num_blocks == 9
    assert record.files_left_out == ("blockexpand.json",)
    assert torch.equal(answers(tiny_base("llama"))[0], answers(tmp_path / "two")[0])


def test_a_hub_cache_of_links_becomes_a_folder_of_files(tiny_base: MakeBase, tmp_path: Path):
    snapshot, blobs = tmp_path / "cache" / "snapshots" / "0123", tmp_path / "cache" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_base("llama"), blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    make(snapshot, tmp_path / "out")
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert torch.equal(answers(tiny_base("llama"))[0], answers(tmp_path / "out")[0])


def test_overwrite_replaces_only_what_is_ours(tiny_base: MakeBase, tmp_path: Path):
    base, out = tiny_base("llama"), tmp_path / "out"
    make(base, out)
    with pytest.raises(StagingError, match=rf"{out} already exists.*--overwrite"):
        make(base, out)
    (out / "stray").write_text("from before")
    expand(base, out, plan(base, 3), overwrite=True)
    assert read_expansion(out).plan.num_blocks == 7
    assert not (out / "stray").exists()
    shutil.copytree(base, tmp_path / "theirs")
    with pytest.raises(StagingError, match="blockexpand did not make it"):
        expand(base, tmp_path / "theirs", plan(base, 3), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "theirs"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"family": "qwen2"}, "its family is llama, this model's is qwen2"),
        ({"family": "llama", "blocks": 5}, "its number of blocks is 4, this model's is 5"),
        ({"family": "llama", "rms_norm_eps": 1e-3}, r"its digest of config\.json is sha256:"),
        ({"family": "llama", "dtype": torch.float32}, r"its digest of config\.json is sha256:"),
    ],
)
def test_a_plan_for_another_base_is_refused(tiny_base: MakeBase, tmp_path: Path, other: dict[str, Any], words: str):
    made = plan(tiny_base("llama"), 2)
    with pytest.raises(ExpansionError, match=words) as raised:
        expand(tiny_base(**other), tmp_path / "out", made)
    assert str(tiny_base("llama")) in str(raised.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "change", "words"),
    [
        ("kinds", lambda v: (dataclasses.replace(v[0], tensors=v[0].tensors[1:]),), "list of each kind of block's"),
        ("config_changes", lambda value: value | {"num_hidden_layers": 7}, r"new config is \{'num_hidden_layers': 7"),
        ("config_before", lambda value: value | {"num_hidden_layers": 3}, r"old config is \{'num_hidden_layers': 3"),
    ],
)
def test_a_plan_changed_by_hand_is_refused(tiny_base: MakeBase, tmp_path: Path, field: str, change: Any, words: str):
    made = plan(tiny_base("llama"), 2)
    changed = dataclasses.replace(made, **{field: change(vars(made)[field])})
    with pytest.raises(ExpansionError, match=words):
        expand(tiny_base("llama"), tmp_path / "out", changed)


def test_a_proof_that_fails_leaves_nothing(tiny_base: MakeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bad = Check(name="logits are the base's", passed=False, figure="they differ by up to 3")
    proof = Proof(plan_digest="", trained=False, dtypes=(), device="cpu", checks=(bad,))
    monkeypatch.setattr(expander, "prove_checkpoints", lambda *_: proof)
    base = tiny_base("llama")
    with pytest.raises(ExpansionError, match="FAIL logits are the base's: they differ by up to 3; nothing was written"):
        expand(base, tmp_path / "out", plan(base, 2), prove=True)
    assert not any(tmp_path.iterdir())


def test_rotary_buffers_of_old_checkpoints_travel_with_their_blocks(own_base: MakeBase, tmp_path: Path):
    base = own_base("llama")
    tensors = load_file(base / "model.safetensors")
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.arange(4.0) for i in range(4)}
    without = plan(base, 2).cost
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    record = make(base, tmp_path / "out")
    assert "model.layers.5.self_attn.rotary_emb.inv_freq" in open_checkpoint(tmp_path / "out").tensors
    assert record.plan.cost.parameters_new == without.parameters_new
    assert torch.equal(answers(base)[0], answers(tmp_path / "out")[0])
