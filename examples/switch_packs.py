"""Two packs on one base in memory, switched while the model stays loaded.

    python examples/switch_packs.py runs/packs-example

The packs here are made in a moment: each is trained by a few steps on one sentence. Yours come from
`blockexpand pack extract RUN PACK`.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

import blockexpand
from blockexpand.data import TINY_BASE as BASE
from blockexpand.packs import About, attach, extract
from blockexpand.packs.in_memory import disable, enable, enabled
from blockexpand.training import BlockExpansionCallback

SENTENCES = {"code": "def add(a, b):\n    return a + b", "verse": "The moon is high, the sea is deep"}


def make_pack(name: str, text: str, out: Path) -> Path:
    """Grow the base, train its new blocks on the text, and take them out."""
    from transformers import Trainer, TrainingArguments

    ids = AutoTokenizer.from_pretrained(BASE)(text)["input_ids"]
    blockexpand.expand(BASE, out / "deeper" / name, blockexpand.plan(BASE, blocks=2))
    model, _ = blockexpand.load(out / "deeper" / name, dtype=torch.float32)
    settings = TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=12,
        per_device_train_batch_size=1,
        learning_rate=2e-3,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    callback = BlockExpansionCallback(out / "deeper" / name, out / "trained" / name)
    rows = [{"input_ids": ids, "labels": ids}] * 12
    Trainer(model=model, args=settings, train_dataset=rows, callbacks=[callback]).train()
    extract(out / "trained" / name / "model", out / "packs" / name, About(name=name))
    return out / "packs" / name


def main(out: Path) -> None:
    """Print each sentence's loss under each state of the switches."""
    from transformers import AutoModelForCausalLM

    packs = [make_pack(name, text, out) for name, text in SENTENCES.items()]
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = attach(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval(), packs)
    for names in ((), ("code",), ("verse",), ("code", "verse")):
        disable(model, *SENTENCES)
        if names:
            enable(model, *names)
        losses = []
        for name, text in SENTENCES.items():
            ids = tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                losses.append(f"{name} {model(input_ids=ids, labels=ids).loss:.3f}")
        print(f"on: {'+'.join(enabled(model)) or 'none'}; loss: {', '.join(losses)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/packs-example"))
