"""GGUF: names by gguf's own map for Llamas, bytes read back, and the file run by transformers' own GGUF loader.

llama.cpp itself is in test_llama_cpp.py, where it is installed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("gguf")

import gguf
from huggingface_hub import constants

from blockexpand.checkpoint import locate_model, open_checkpoint
from blockexpand.errors import CheckpointError
from world_gguf import gguf_names, paired, write_gguf
from world_ground import World, continue_by_hand, logits_of


@pytest.fixture(scope="module")
def written(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(world, tmp_path_factory.mktemp("gguf") / "grown.gguf")


def test_every_name_is_in_the_map_for_llamas(world: World) -> None:
    names = gguf_names(world)
    assert len(set(names.values())) == len(names)
    blocks = {int(theirs.split(".")[1]) for theirs in names.values() if theirs.startswith("blk.")}
    assert blocks == set(range(world.plan.num_blocks))
    known = {gguf.TENSOR_NAMES[kind] for kind in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.LLAMA]}
    assert {_plain(theirs) for theirs in names.values()} <= known


def _plain(name: str) -> str:
    parts = name.removesuffix(".weight").split(".")
    return ".".join("{bid}" if part.isdigit() else part for part in parts)


def test_the_file_has_the_deeper_config_and_the_same_numbers(world: World, written: Path) -> None:
    reader = gguf.GGUFReader(written)
    model = world.model()
    assert reader.fields["llama.block_count"].contents() == world.plan.num_blocks == model.config.num_hidden_layers
    stored = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    state, names = model.state_dict(), gguf_names(world)
    assert set(stored) == set(names.values())
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, theirs in names.items():
        expected, part = state[name].numpy(), name.split(".")[-2]
        assert np.array_equal(stored[theirs], paired(expected, heads[part]) if part in heads else expected), name


def test_the_file_runs_and_says_the_same(world: World, written: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(written.parent, gguf_file=written.name, dtype=torch.float32)
    assert model.config.num_hidden_layers == world.plan.num_blocks
    for tokens_BT in (world.tokens(), world.tokens("The king was very")):
        torch.testing.assert_close(logits_of(model, tokens_BT), logits_of(world.model(), tokens_BT))
        said, expected = (continue_by_hand(one, tokens_BT, 12).tolist() for one in (model, world.model()))
        assert said == expected


def test_a_gguf_file_is_a_model_and_its_numbers_are_kept(
    world: World, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    plain = locate_model(written)
    assert locate_model(written.parent) == plain  # made once
    assert open_checkpoint(written).config["num_hidden_layers"] == world.plan.num_blocks
    torch.testing.assert_close(logits_of(world.model(plain), world.tokens()), logits_of(world.model(), world.tokens()))


@pytest.mark.parametrize("broken", ["cut", "empty", "architecture", "type"])
def test_a_gguf_file_that_cannot_be_dequantised_is_refused_by_name(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    path, whole = tmp_path / "odd.gguf", written.read_bytes()
    path.write_bytes(whole[: {"cut": len(whole) // 2}.get(broken, 200)])
    if broken in ("architecture", "type"):
        writer = gguf.GGUFWriter(path, "mpt" if broken == "architecture" else "llama")
        kind = np.float32 if broken == "architecture" else np.int32
        writer.add_tensor("token_embd.weight", np.ones((4, 32), dtype=kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    with pytest.raises(CheckpointError) as raised:
        locate_model(path)
    assert {"architecture": "'mpt'", "type": "I32"}.get(broken, str(path)) in str(raised.value)
    assert not [p for p in (tmp_path / "blockexpand").rglob("*") if p.is_file()]
