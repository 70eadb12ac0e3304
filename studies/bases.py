"""Bases of several sizes, made with the tiny base's tokenizer and recipe, for a study of scale.

In: a shape and how much text. Out: a Llama checkpoint trained on the part of the tiny base's text that no study
rehearses or measures on. Killed, the training goes on where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import blockexpand
from blockexpand.corpus import PrepareRecipe, SplitRecipe
from blockexpand.data import TINY_BASE
from blockexpand.records import from_plain, read_json, read_yaml
from blockexpand.records.run import TrainSettings
from blockexpand.staging import RECORD_NAME, staged_folder
from studies.recipe import BaseRecipe
from studies.tiny_base.general_text import with_prose

_TEXTS = Path(__file__).parent / "texts.yaml"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_MLP = 2.75
"""The MLP's inner width over the hidden size, as in the tiny base."""
_ROWS_PER_STEP = 16


def make_base(wish: BaseRecipe, root: Path) -> Path:
    """Make a base in `root`/bases, unless it is there; its folder."""
    folder = root / "bases" / wish.name
    if not (folder / "run" / RECORD_NAME).is_file():
        if not (folder / "untrained").is_dir():
            _write_untrained(wish, folder / "untrained")
        settings = {
            "model": str(folder / "untrained"),
            "out": str(folder / "run"),
            "arm": {"kind": "full"},
            "data": {"domain": str(_text(wish.tokens, root)), "validation_rows": 0},
            "domain_tokens": wish.tokens,
            "rows_per_step": _ROWS_PER_STEP,
            "rows_per_pass": _ROWS_PER_STEP,
            "optimizer": {"name": "muon", "lr": wish.lr},
            "schedule": {"kind": "linear", "warmup": 0.02},
            "checkpoint_every_steps": 100,
        }
        blockexpand.train(from_plain(TrainSettings, settings, f"the base {wish.name}"), resume=True)
    made = folder / wish.name
    if not made.is_dir():
        with staged_folder(made) as staged:
            shutil.copytree(folder / "run" / "model", staged, dirs_exist_ok=True)
    return made


def _text(tokens: int, root: Path) -> Path:
    """The general text with the split that studies keep out, since the tiny base has read it."""
    general = from_plain(PrepareRecipe, read_yaml(_TEXTS)["general"], str(_TEXTS))
    splits = {"train": SplitRecipe(share=1.0, max_tokens=tokens)}
    folder = root / "texts" / f"general-for-bases-{tokens}"
    if not (folder / RECORD_NAME).is_file():
        recipe = with_prose(dataclasses.replace(general, splits=splits), folder.parent, ("train",))
        blockexpand.prepare(recipe, TINY_BASE, folder)
    return folder


def _write_untrained(wish: BaseRecipe, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    like = read_json(TINY_BASE / "config.json")
    kept = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=wish.hidden_size,
        intermediate_size=round(_MLP * wish.hidden_size),
        num_hidden_layers=wish.num_blocks,
        num_attention_heads=wish.num_heads,
        num_key_value_heads=wish.num_heads,
        tie_word_embeddings=True,
        **{name: like[name] for name in kept},
    )
    with staged_folder(folder) as staged:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(staged)
        for name in _TOKENIZER:
            shutil.copy2(TINY_BASE / name, staged / name)
