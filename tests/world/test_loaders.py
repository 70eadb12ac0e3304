"""vLLM and SGLang are not installed here: what their Llama loaders ask of a folder, as read in their source.

Read: `load_weights` of vllm/model_executor/models/llama.py and of sglang/srt/models/llama.py. Both make
`num_hidden_layers` layers of the class named in `architectures`, fuse q, k, v and gate, up, and look each tensor of
the files up by its name. vLLM stops at a name it does not know; SGLang warns and leaves the tensor out. Neither says
anything of a tensor that is missing. A tied head in the files is one that vLLM's older versions do not know.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockexpand.checkpoint import open_checkpoint
from world_ground import World

FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
PLAIN = ("self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm")


def parts_they_make(num_layers: int) -> dict[str, tuple[str, ...]]:
    """Each parameter of their Llama with a tied head and no biases, and the tensors it is filled from."""
    made: dict[str, tuple[str, ...]] = {n: (n,) for n in ("model.embed_tokens.weight", "model.norm.weight")}
    for n in range(num_layers):
        layer = f"model.layers.{n}"
        made |= {f"{layer}.{one}.weight": (f"{layer}.{one}.weight",) for one in PLAIN}
        made |= {f"{layer}.{one}.weight": tuple(f"{layer}.{p}.weight" for p in parts) for one, parts in FUSED.items()}
    return made


@pytest.mark.parametrize("which", ["base", "grown"])
def test_their_llama_is_filled_whole_and_nothing_is_left_over(world: World, which: str) -> None:
    folder: Path = world.grown if which == "grown" else world.base
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["tie_word_embeddings"] is True
    assert "auto_map" not in config
    shapes = {name: tuple(entry.shape) for name, entry in open_checkpoint(folder).tensors.items()}
    made = parts_they_make(config["num_hidden_layers"])
    assert {tensor for tensors in made.values() for tensor in tensors} == set(shapes)
    hidden, width, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    rows = {"self_attn.qkv_proj": (heads + 2 * shared) * size, "mlp.gate_up_proj": 2 * width}
    for fused, expected in rows.items():
        for name, tensors in made.items():
            if fused in name:
                assert sum(shapes[tensor][0] for tensor in tensors) == expected
                assert {shapes[tensor][1] for tensor in tensors} == {hidden}


def test_what_is_per_layer_in_the_config_is_as_long_as_the_stack(world: World) -> None:
    config = json.loads((world.grown / "config.json").read_text())
    lists = {key: value for key, value in config.items() if isinstance(value, list) and key != "architectures"}
    assert config["num_hidden_layers"] == world.plan.num_blocks
    assert all(len(value) == world.plan.num_blocks for value in lists.values()), lists
