"""A tiny language model with our own tokenizer, and prepared corpora for it: what training tests stand on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from studies.tiny_base.tokenizer import save_tokenizer, train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from blockexpand.corpus import PrepareRecipe, Source, SplitRecipe, prepare
from blockexpand.expansion import expand, plan

ROW_TOKENS = 32
_NOUNS = ["cat", "dog", "bird", "fish", "tree", "stone", "river", "cloud", "house", "road"]
_VERBS = ["sees", "likes", "finds", "follows", "leaves", "hears"]


def sentences(count: int, seed: int, verbs: list[str] = _VERBS) -> list[str]:
    """Made-up sentences with a grammar a tiny model can learn."""
    r = random.Random(seed)
    texts = []
    for _ in range(count):
        lines = [f"the {r.choice(_NOUNS)} {r.choice(verbs)} the {r.choice(_NOUNS)}." for _ in range(r.randint(1, 9))]
        texts.append(f"{r.randrange(10**6)} " + " ".join(lines))
    return texts


def make_lm(folder: Path, *, blocks: int = 4, vocabulary: int = 320, seed: int = 0) -> Path:
    """Write a tiny bf16 Llama with a byte-level tokenizer and a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(sentences(200, 0), vocabulary)
    save_tokenizer(tokenizer, folder, 64)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def make_corpus(folder: Path, model: Path, *, seed: int = 1, domain: bool = False, documents: int = 120) -> Path:
    """Write a prepared corpus; a domain corpus speaks of other deeds than a general one."""
    source = folder.parent / f"{folder.name}.jsonl"
    texts = sentences(documents, seed, ["compiles", "returns", "imports"] if domain else _VERBS)
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shares = {"train": 0.5, "replay": 0.2, "validation": 0.15, "test": 0.15}
    recipe = PrepareRecipe(
        sources=(Source(path=str(source)),),
        row_tokens=ROW_TOKENS,
        splits={name: SplitRecipe(share=share) for name, share in shares.items()},
    )
    prepare(recipe, model, folder)
    return folder


def make_general(folder: Path, model: Path) -> Path:
    """Write a prepared corpus of general text, with documents enough to promise a budget on."""
    return make_corpus(folder, model, seed=2, documents=600)


def make_chats(folder: Path, model: Path, *, count: int = 40) -> Path:
    """Write a prepared corpus of conversations: the right answer repeats the question's last word."""
    source = folder.parent / f"{folder.name}.jsonl"
    rows = []
    for text in sentences(count, 5):
        word = text.rstrip(".").rpartition(" ")[2]
        rows.append({"messages": [{"role": "user", "content": text[:40]}, {"role": "assistant", "content": word}]})
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {"train": SplitRecipe(share=0.7), "validation": SplitRecipe(share=0.3)}
    recipe = PrepareRecipe(sources=(Source(path=str(source)),), row_tokens=2 * ROW_TOKENS, splits=splits)
    prepare(recipe, model, folder)
    return folder


def make_expanded(folder: Path, base: Path, blocks: int = 2) -> Path:
    """Write the base with new blocks."""
    expand(base, folder, plan(base, blocks))
    return folder
