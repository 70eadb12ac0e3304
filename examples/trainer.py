"""A script with transformers' Trainer, and the three lines that make it train new blocks only.

    python examples/trainer.py runs/trainer-example

It trains for a few steps on the CPU, with no network. `OUT/blocks/model` is then the finished checkpoint, whose old
tensors have the bytes they had.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Trainer, TrainingArguments

import blockexpand
from blockexpand.data import TINY_BASE as BASE  # any folder of a supported model

TEXT = "def add(a, b):\n    return a + b\n\n\ndef double(n):\n    return add(n, n)\n"


def main(out: Path) -> None:
    """Train, and say what became of it."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer(TEXT)["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}] * 16

    blockexpand.expand(BASE, out / "deeper", blockexpand.plan(BASE, blocks=2))  # blockexpand 1
    model, _ = blockexpand.load(out / "deeper", dtype=torch.float32)  # blockexpand 2, as from_pretrained
    callback = blockexpand.BlockExpansionCallback(out / "deeper", out / "blocks")  # blockexpand 3

    settings = TrainingArguments(
        output_dir=str(out / "trainer"),
        max_steps=8,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=rows, callbacks=[callback])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; finished checkpoint: {out / 'blocks/model'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/trainer-example"))
