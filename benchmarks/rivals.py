"""What others do to expand a checkpoint, redone by their documented steps: one function each, for a Llama.

In: the base's folder, the folder to write, how many new blocks. Out: the folder. Nothing is taken from their code.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from bases import LlamaShape

_RIVAL_SHARD = "5GB"
"""The default of LLaMA-Factory's script."""


def load_rename_save(base: str, out: str, num_new: int) -> None:
    """Everything into memory, a new dictionary of tensors, everything out again."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    state = model.state_dict()
    group = config.num_hidden_layers // num_new
    deeper, position = {}, 0
    for block in range(config.num_hidden_layers):
        prefix = f"model.layers.{block}."
        tensors = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        deeper |= {f"model.layers.{position}.{tail}": t for tail, t in tensors.items()}
        position += 1
        if (block + 1) % group == 0:
            for tail, tensor in tensors.items():
                writes = tail in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
                made = torch.zeros_like(tensor) if writes else torch.clone(tensor)
                deeper[f"model.layers.{position}.{tail}"] = made
            position += 1
    deeper |= {name: t for name, t in state.items() if not name.startswith("model.layers.")}
    config.num_hidden_layers = position
    config.save_pretrained(out)
    split = split_torch_state_dict_into_shards(deeper, max_shard_size=_RIVAL_SHARD)
    for file, names in split.filename_to_tensors.items():
        save_file({name: deeper[name] for name in names}, os.path.join(out, file), metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        Path(out, "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def load_deepcopy_pickle(base: str, out: str, num_new: int) -> None:
    """The model in float16, a second dictionary with deep copies, one pickle."""
    import copy

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    state = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).state_dict()
    group = config.num_hidden_layers // num_new
    deeper = {name: t for name, t in state.items() if not name.startswith("model.layers.")}
    position = 0
    for block in range(config.num_hidden_layers):
        prefix = f"model.layers.{block}."
        tensors = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        deeper |= {f"model.layers.{position}.{tail}": t for tail, t in tensors.items()}
        position += 1
        if (block + 1) % group == 0:
            for tail, tensor in tensors.items():
                made = copy.deepcopy(tensor)
                if tail in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
                    made = torch.zeros_like(made)
                deeper[f"model.layers.{position}.{tail}"] = made
            position += 1
    Path(out).mkdir()
    torch.save(deeper, Path(out, "pytorch_model.bin"))


def mergekit_slices(base: Path, shape: LlamaShape) -> str:
    """What mergekit is to do, in its words."""
    group = shape.num_blocks // shape.num_new
    silent = {"scale": [{"filter": "o_proj", "value": 0.0}, {"filter": "down_proj", "value": 0.0}, {"value": 1.0}]}
    slices: list[object] = []
    for top in range(group, shape.num_blocks + 1, group):
        old = {"model": str(base), "layer_range": [top - group, top]}
        new = {"model": str(base), "layer_range": [top - 1, top], "parameters": silent}
        slices += [{"sources": [old]}, {"sources": [new]}]
    # JSON is YAML.
    return json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"})
