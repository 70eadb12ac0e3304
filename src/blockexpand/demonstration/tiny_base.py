"""How the tiny base is made: text -> tokenizer -> untrained model -> corpus -> one training run.

In: the installed packages' documentation and, if given, a folder of further text. Out: a work folder with
every step's artifact, and the finished model as bf16 safetensors. The training is the same loop as
everybody's, with the arm `full`. `make tiny-base` runs it; `base_record.json` tells what came of it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from blockexpand.corpus import PrepareRecipe, SplitRecipe, prepare
from blockexpand.corpus.documents import Document
from blockexpand.corpus.sources import JsonSource, documents
from blockexpand.demonstration.general_text import SHARES, divide, general_documents
from blockexpand.demonstration.tokenizer import save_tokenizer, train_tokenizer
from blockexpand.progress import say
from blockexpand.records import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyBaseShape:
    """The model's shape: Llama, grouped-query attention, tied embeddings."""

    vocabulary_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_blocks: int = 8
    num_heads: int = 4
    num_key_value_heads: int = 2
    max_positions: int = 512
    row_tokens: int = 256


def gather(extra: Path | None, work: Path) -> dict[str, int]:
    """Write `work`/general.jsonl (every kept document) and say what was kept and dropped."""
    splits, counts = divide(general_documents(extra))
    work.mkdir(parents=True, exist_ok=True)
    with (work / "general.jsonl").open("w", encoding="utf-8") as stream:
        for split, items in splits.items():
            counts[f"documents {split}"] = len(items)
            counts[f"characters {split}"] = sum(len(d.text) for d in items)
            for item in items:
                stream.write(json.dumps({"text": item.text, "name": item.name}, ensure_ascii=False) + "\n")
    write_json(work / "counts.json", counts)
    return counts


def make_untrained(work: Path, shape: TinyBaseShape) -> Path:
    """Write `work`/untrained: the tokenizer, trained on the train split, and a model of random weights.

    No code goes into the tokenizer: with some, it has tokens that the base never sees, and what learns over
    frozen embeddings could never say them (docs/log.md).
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    source = JsonSource(kind="json", path=str(work / "general.jsonl"))
    texts = [d.text for d in documents(source) if _is_train(d)]
    folder = work / "untrained"
    folder.mkdir(exist_ok=True)
    tokenizer = train_tokenizer(texts, shape.vocabulary_size)
    save_tokenizer(tokenizer, folder, shape.max_positions)
    say(f"tokenizer: {tokenizer.get_vocab_size()} tokens from {sum(map(len, texts)):,} characters")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_blocks,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _is_train(document: Document) -> bool:
    from blockexpand.corpus.documents import split_of

    return split_of(document.text, SHARES) == "train"


def prepare_general(work: Path, model: Path, row_tokens: int) -> Path:
    """Write `work`/corpus: the splits train, validation and test of the gathered text."""
    recipe = PrepareRecipe(
        sources=(JsonSource(kind="json", path=str(work / "general.jsonl")),),
        row_tokens=row_tokens,
        splits={name: SplitRecipe(share=share, write=name != "replay") for name, share in SHARES.items()},
    )
    prepare(recipe, model, work / "corpus", overwrite=True)
    return work / "corpus"


def ship(work: Path, model: Path, out: Path) -> None:
    """Write `out`: the model as bf16 safetensors with its tokenizer, and what the run gave as `record.json`."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16, local_files_only=True)
    out.mkdir(parents=True, exist_ok=True)
    loaded.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_bytes((work / "untrained" / name).read_bytes())
