"""What the tests of other people's programs stand on; the fixture that makes it is in world/conftest.py."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from blockexpand.records.expansion import read_expansion
from blockexpand.records.plan import Plan

PROMPTS = ("The little dog went to", "One day a girl named Ann found", "The king was very")
AFTER = (1, 4, 7)


@dataclasses.dataclass(frozen=True)
class World:
    """Folders that tests read and never change."""

    base: Path
    grown: Path

    @property
    def plan(self) -> Plan:
        """Where the new blocks of `grown` are."""
        return read_expansion(self.grown).plan

    def model(self, folder: Path | None = None) -> PreTrainedModel:
        """`grown`, or another folder, in float32 as anybody loads it: with nothing of ours."""
        return AutoModelForCausalLM.from_pretrained(folder or self.grown, dtype=torch.float32).eval()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Its tokenizer."""
        return AutoTokenizer.from_pretrained(self.grown)

    def tokens(self, prompt: str = PROMPTS[0]) -> torch.Tensor:
        """A row of token ids, shape 1 x T."""
        return self.tokenizer()(prompt, return_tensors="pt").input_ids


@torch.no_grad()
def logits_of(model: torch.nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    """What the model says, in eval mode; shape B x T x V."""
    return model.eval()(input_ids=tokens_BT).logits


@torch.no_grad()
def continue_by_hand(model: torch.nn.Module, tokens_BT: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy continuation with no cache and no `generate`: what every consumer is held against."""
    for _ in range(count):
        tokens_BT = torch.cat([tokens_BT, logits_of(model, tokens_BT)[:, -1:].argmax(-1)], dim=1)
    return tokens_BT


def offline() -> dict[str, str]:
    """The environment of a program that must not look for the hub."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | quiet | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
