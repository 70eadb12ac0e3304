"""An expanded Llama as a GGUF file, written with the `gguf` package the way llama.cpp lays Llamas out."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch

from world_ground import World


def gguf_names(world: World) -> dict[str, str]:
    """Each tensor's name in the folder, and what gguf's own map for Llamas calls it."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, world.plan.num_blocks)
    found = {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in _tensors(world)}
    unknown = [name for name, theirs in found.items() if theirs is None]
    assert unknown == []
    return {name: theirs for name, theirs in found.items() if theirs is not None}


def write_gguf(world: World, out: Path) -> Path:
    """Write `grown` in float32, with its config and the words of its tokenizer."""
    config = world.model().config
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    _add_words(writer, world)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf_names(world)
    for name, tensor in _tensors(world).items():
        part = name.split(".")[-2]
        writer.add_tensor(names[name], paired(tensor.numpy(), heads[part]) if part in heads else tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _add_words(writer: gguf.GGUFWriter, world: World) -> None:
    """The words and merges of a byte-level BPE, so that llama.cpp loads the file and turns ids back into text.

    How it cuts text before merging ("gpt-2" here) is not the tokenizer's own way: feed it ids, not text.
    """
    held = json.loads((world.grown / "tokenizer.json").read_text(encoding="utf-8"))
    words = sorted(held["model"]["vocab"], key=held["model"]["vocab"].__getitem__)
    control = {added["content"] for added in held["added_tokens"] if added["special"]}
    kinds = [gguf.TokenType.CONTROL if word in control else gguf.TokenType.NORMAL for word in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in held["model"]["merges"]])


def _tensors(world: World) -> dict[str, torch.Tensor]:
    """As they are in the folder: a tied head is not one of them."""
    state = world.model().state_dict()
    return {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbouring rows (0, 1), transformers the halves (0, D/2): the rows in its order."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
