"""The recipes that come with the project can be read: no key has been renamed under them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockexpand.checkpoint import build_header
from blockexpand.comparison import load_recipe
from blockexpand.corpus import PrepareRecipe, Source, SplitRecipe, prepare
from blockexpand.corpus import load_recipe as load_corpus_recipe
from blockexpand.expansion import plan
from blockexpand.families import with_entries
from blockexpand.records import write_record
from blockexpand.records.expansion import ExpansionRecord
from blockexpand.records.run import DataSettings, load_settings
from blockexpand.training import check_run
from helpers import MakeBase

GIGABYTE = 1e9
CARD_BYTES = 24 * 2**30
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 131072, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
"""Llama 3.1 8B, by the entries of its config.json that shape it."""
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TINY_BASE = Path(__file__).parents[2] / "studies/tiny_base/tiny-base.yaml"


def test_there_are_some() -> None:
    assert {"compare.yaml", "post-pretrain-7b.yaml", "instruct-7b.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", [*RECIPES, TINY_BASE], ids=lambda path: path.stem)
def test_it_is_read(path: Path) -> None:
    if path.stem.startswith("compare"):
        assert len(load_recipe(path).arms) > 1
    elif path.stem.startswith("prepare"):
        assert load_corpus_recipe(path).sources
    else:
        assert load_settings(path).domain_tokens > 0


def headers_alone(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint of that shape whose file is one hole behind its header."""
    wide, keys, inner, words = 4096, 1024, 14336, 128256
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (words, wide), "lm_head.weight": (words, wide), "model.norm.weight": (wide,),
    }  # fmt: skip
    block = {
        "input_layernorm": (wide,), "post_attention_layernorm": (wide,), "self_attn.q_proj": (wide, wide),
        "self_attn.k_proj": (keys, wide), "self_attn.v_proj": (keys, wide), "self_attn.o_proj": (wide, wide),
        "mlp.gate_proj": (inner, wide), "mlp.up_proj": (inner, wide), "mlp.down_proj": (wide, inner),
    }  # fmt: skip
    for number in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{number}.{name}.weight": shape for name, shape in block.items()}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    header = build_header([(name, "BF16", shape) for name, shape in shapes.items()], {"format": "pt"})
    with open(folder / "model.safetensors", "wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + 2 * sum(math.prod(shape) for shape in shapes.values()))
    return folder


def test_the_recipe_for_a_24_gb_card_leaves_a_quarter_of_it(tmp_path: Path, tiny_base: MakeBase) -> None:
    """By the forecast of `train --dry-run`, for the model and the blocks that its head names, and as it says."""
    path = next(path for path in RECIPES if path.stem == "one-gpu-24gb-8b")
    head = path.read_text()
    (blocks,) = re.findall(r"expand meta-llama/Llama-3.1-8B llama-deeper --blocks (\d+)", head)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": "the cat sat on a mat " * 800}) + "\n" for _ in range(3)))
    recipe = PrepareRecipe(
        sources=(Source(path=str(texts)),), row_tokens=2048, splits={"train": SplitRecipe(share=1.0)}
    )
    tiny = tiny_base()
    prepare(recipe, tiny, tmp_path / "data")
    base = headers_alone(tmp_path / "base", LLAMA_8B)
    planned = plan(base, blocks=int(blocks))
    deeper = headers_alone(tmp_path / "deeper", with_entries(LLAMA_8B, planned.config_changes))
    record = ExpansionRecord(blockexpand_version="0", plan=planned, base_digests={}, files_copied=(), files_left_out=())
    write_record(deeper / "blockexpand.json", record)
    shutil.copy(tiny / "tokenizer.json", deeper)
    data = DataSettings(domain=str(tmp_path / "data"), general="self")
    settings = dataclasses.replace(load_settings(path), model=str(deeper), data=data)
    found = check_run(settings)
    needed = found.memory_bytes
    assert needed is not None
    assert needed < 0.75 * CARD_BYTES
    assert f"two new blocks take {needed / GIGABYTE:.1f} GB" in " ".join(head.replace("#", "").split())
    assert f"{CARD_BYTES / GIGABYTE:.1f} GB" in head
