"""A script with TRL's SFTTrainer on conversations, and the three lines that make it train new blocks only.

    python examples/trl_sft.py runs/trl-example

It trains for a few steps on the CPU, with no network. `OUT/blocks/model` is then the finished checkpoint.
"""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

import blockexpand
from blockexpand.data import TINY_BASE as BASE  # any folder of a supported model

CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {n} plus {n}?"},
            {"role": "assistant", "content": f"{n} plus {n} is {2 * n}."},
        ]
    }
    for n in range(16)
]


def main(out: Path) -> None:
    """Train, and say what became of it."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)

    blockexpand.expand(BASE, out / "deeper", blockexpand.plan(BASE, blocks=2))  # blockexpand 1
    model, _ = blockexpand.load(out / "deeper", dtype=torch.float32)  # blockexpand 2, instead of the model's name
    callback = blockexpand.BlockExpansionCallback(out / "deeper", out / "blocks")  # blockexpand 3

    settings = SFTConfig(
        output_dir=str(out / "trl"),
        max_steps=8,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=Dataset.from_list(CHATS),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; finished checkpoint: {out / 'blocks/model'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/trl-example"))
