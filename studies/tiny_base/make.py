"""How the tiny base is made: text -> tokenizer -> untrained model -> corpus -> one training run.

In: the installed packages' documentation and, if given, a folder of further text. Out: a work folder with
every step's artifact, the finished model as bf16 safetensors (`base/`) and `base_record.json`, which tells
how it was made and what it scores. The training is the same loop as everybody's, with the arm `full`.
`make tiny-base` runs it; killed, it goes on where it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import blockexpand
from blockexpand.corpus import (
    Document,
    Source,
    all_documents,
    open_corpus,
    prepare,
)
from blockexpand.progress import progress_on_stderr, say
from blockexpand.records import read_json, read_record, write_json, write_record
from blockexpand.records.corpus import CorpusRecord
from blockexpand.records.evaluation import HeldOut
from blockexpand.records.run import RunRecord, load_settings, read_metrics
from blockexpand.staging import RECORD_NAME
from studies.tiny_base.general_text import divide, general_documents, split_of
from studies.tiny_base.tokenizer import save_tokenizer, train_tokenizer

_RECIPE = Path(__file__).parent / "tiny-base.yaml"
RECORD = Path(__file__).parent / "base_record.json"
"""The record of the base that ships with us."""


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TinyBaseRecord:
    """How a tiny base was made, and what it scores; saved as `base_record.json`."""

    FORMAT: ClassVar[str] = "blockexpand.tiny-base"
    FORMAT_VERSION: ClassVar[int] = 1

    date: str
    model_digest: str
    """Of the shipped weights, as `evaluation` computes it."""
    shape: TinyBaseShape
    text: dict[str, int]
    """Documents and characters: kept by origin, dropped, and in each split."""
    corpus: CorpusRecord
    """The packed rows, with their digests."""
    run: RunRecord
    """Settings, machine, time."""
    curve: tuple[dict[str, Any], ...]
    """Loss in nats per token: of the step's own rows every 25 steps, on validation rows now and then."""
    held_out: dict[str, HeldOut]
    """On the test split: `trained` as shipped, and `untrained`, the same shape with random weights."""


def make(work: Path, extra: Path | None = None) -> TinyBaseRecord:
    """Make the tiny base, whole, in `work`; what is there already is not made again.

    Args:
        work: The folder for everything.
        extra: A folder of further text, as `general_documents` describes it.

    Raises:
        CorpusError: `extra` holds no text.
    """
    extra = extra.resolve() if extra is not None else None
    work.mkdir(parents=True, exist_ok=True)
    shape = TinyBaseShape()
    with contextlib.chdir(work):  # the recipe's paths are relative, so that its run is the same run anywhere
        here = Path()
        if not (here / "counts.json").exists():
            gather(extra, here)
        if not (here / "untrained" / "config.json").exists():
            make_untrained(here, shape)
        if not (here / "corpus" / RECORD_NAME).exists():
            prepare_general(here, here / "untrained", shape.row_tokens)
        if not (here / "run" / RECORD_NAME).exists():
            blockexpand.train(load_settings(_RECIPE), resume=True)
        ship(here, here / "run" / "model", here / "base")
        record = _record(here, shape)
        write_record(here / RECORD.name, record)
    return record


def _record(work: Path, shape: TinyBaseShape) -> TinyBaseRecord:
    models = {"trained": work / "base", "untrained": work / "untrained"}
    scores = {
        name: blockexpand.evaluate(model, {"general": work / "corpus"}, work / f"eval-{name}", overwrite=True)
        for name, model in models.items()
    }
    lines = read_metrics(work / "run" / "metrics.jsonl")
    steps = [{"step": x["step"], "loss": x["domain_loss"]} for x in lines if x["kind"] == "train"]
    measured = [{"step": x["step"], "validation_loss": x["domain"]} for x in lines if x["kind"] == "measure"]
    return TinyBaseRecord(
        date=time.strftime("%Y-%m-%d"),
        model_digest=scores["trained"].model_digest,
        shape=shape,
        text=read_json(work / "counts.json"),
        corpus=open_corpus(work / "corpus").record,
        run=read_record(RunRecord, work / "run" / RECORD_NAME),
        curve=tuple(sorted((*steps[24::25], *measured), key=lambda x: x["step"])),
        held_out={name: score.held_out["general"] for name, score in scores.items()},
    )


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

    source = Source(path=str(work / "general.jsonl"))
    texts = [d.text for d in all_documents(source) if _is_train(d)]
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
    return split_of(document.text) == "train"


def prepare_general(work: Path, model: Path, row_tokens: int) -> Path:
    """Write `work`/corpus: the gathered text's train split, with a validation and a test split of its own."""
    path = work / "train.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for document in filter(_is_train, all_documents(Source(path=str(work / "general.jsonl")))):
            stream.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
    prepare(path, model, work / "corpus", row_tokens=row_tokens, overwrite=True)
    return work / "corpus"


def ship(work: Path, model: Path, out: Path) -> None:
    """Write `out`: the model as bf16 safetensors, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.bfloat16, local_files_only=True)
    out.mkdir(parents=True, exist_ok=True)
    loaded.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (out / name).write_bytes((work / "untrained" / name).read_bytes())


def main() -> None:
    """The command of `make tiny-base`."""
    from cyclopts import App

    app = App(name="python -m studies.tiny_base.make", help="Make the tiny base.", result_action="return_value")
    app.default(make)
    with progress_on_stderr():
        record = app()
        if isinstance(record, TinyBaseRecord):
            one = record.held_out["trained"]
            say(f"held-out perplexity {one.perplexity:.2f}, {one.bits_per_byte:.4f} bits per byte")


if __name__ == "__main__":
    main()
