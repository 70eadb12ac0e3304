"""Bases of several sizes, made with the tiny base's tokenizer and recipe, for a study of scale.

In: a shape and how much text. Out: a Llama checkpoint trained on the demo's general text: the part of it that no study
rehearses or measures on. Killed, the training goes on where it was.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from blockexpand.comparison.caching import alone
from blockexpand.corpus import SplitRecipe, prepare
from blockexpand.demonstration.paths import BASE
from blockexpand.demonstration.recipe import load_demo
from blockexpand.records import read_json
from blockexpand.records.run import DataSettings, FullArm, OptimizerSettings, ScheduleSettings, TrainSettings
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.studies.recipe import BaseRecipe
from blockexpand.training import train

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_MLP = 2.75
"""The MLP's inner width over the hidden size, as in the tiny base."""
_ROWS_PER_STEP = 16


def make_base(wish: BaseRecipe, folder: Path, root: Path) -> Path:
    """Make a base, unless it is there; its folder."""
    with alone(folder):
        if not (folder / "run" / RECORD_NAME).is_file():
            if not (folder / "untrained").is_dir():
                _write_untrained(wish, folder / "untrained")
            train(_settings(wish, folder, _text(wish.tokens, root)), resume=True)
        made = folder / wish.name
        if not made.is_dir():
            with staged_folder(made) as staged:
                shutil.copytree(folder / "run" / "model", staged, dirs_exist_ok=True)
    return made


def _text(tokens: int, root: Path) -> Path:
    """The demo's general text with the split that it keeps out, since the tiny base has read it."""
    general = load_demo(full=False).general
    splits = {name: dataclasses.replace(split, write=False) for name, split in general.splits.items()}
    share = general.splits["train"].share
    splits["train"] = SplitRecipe(share=share, max_tokens=tokens)
    folder = root / "texts" / f"general-for-bases-{tokens}"
    with alone(folder):
        if not (folder / RECORD_NAME).is_file():
            prepare(dataclasses.replace(general, splits=splits), BASE, folder)
    return folder


def _write_untrained(wish: BaseRecipe, folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    like = read_json(BASE / "config.json")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=like["vocab_size"],
        hidden_size=wish.hidden_size,
        intermediate_size=round(_MLP * wish.hidden_size),
        num_hidden_layers=wish.num_blocks,
        num_attention_heads=wish.num_heads,
        num_key_value_heads=wish.num_heads,
        max_position_embeddings=like["max_position_embeddings"],
        tie_word_embeddings=True,
        bos_token_id=like["bos_token_id"],
        eos_token_id=like["eos_token_id"],
        pad_token_id=like["pad_token_id"],
    )
    with staged_folder(folder) as staged:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(staged)
        for name in _TOKENIZER:
            shutil.copy2(BASE / name, staged / name)


def _settings(wish: BaseRecipe, folder: Path, text: Path) -> TrainSettings:
    return TrainSettings(
        model=str(folder / "untrained"),
        out=str(folder / "run"),
        arm=FullArm(kind="full"),
        data=DataSettings(domain=str(text), validation_rows=0),
        domain_tokens=wish.tokens,
        rows_per_step=_ROWS_PER_STEP,
        rows_per_pass=_ROWS_PER_STEP,
        optimizer=OptimizerSettings(name="muon", lr=wish.lr),
        schedule=ScheduleSettings(kind="linear", warmup=0.02),
        checkpoint_every_steps=100,
    )
