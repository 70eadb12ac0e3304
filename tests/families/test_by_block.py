"""A model run block by block answers as the whole one does, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from zoo import ZOO, Case, write

from blockexpand.checkpoint import open_checkpoint
from blockexpand.expansion.lockstep import BlockByBlock, block_bytes, tensor_bytes
from blockexpand.expansion.memory_proof import CACHED_TOKENS, SEQUENCE_TOKENS, answers, answers_by_block, sequences
from blockexpand.families import family_for
from blockexpand.families.modules import load_model

CHOSEN = ("llama", "qwen3", "gemma2", "mixtral", "gpt2", "falcon", "bloom", "gptj", "mamba2", "jamba", "gpt_oss")
ROWS = [next(row for row in ZOO if row.family == family) for family in CHOSEN]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(
        a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("row", ROWS, ids=CHOSEN)
def test_every_answer_is_the_whole_models(row: Case, tmp_path: Path):
    checkpoint = open_checkpoint(write(row, tmp_path / "base", torch.float32))
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    model = load_model(checkpoint.folder, dtype=torch.float32, loader=family.loader)
    expected = answers(model, sequences(model))
    sizes = block_bytes(checkpoint, family, torch.float32)
    for_one = tensor_bytes(checkpoint, torch.float32) - sum(sizes) + 2 * max(sizes)
    found = answers_by_block(BlockByBlock(checkpoint, family, dtype=torch.float32, device="cpu", memory=for_one))
    assert same(expected.logits_BTV, found.logits_BTV)
    assert same(expected.cached_BTV, found.cached_BTV)
    # The continuations are shorter, because every token costs reading the checkpoint again.
    shorter = [a[:, : b.shape[1]] for a, b in zip(expected.generated_BT, found.generated_BT, strict=True)]
    assert same(shorter, found.generated_BT)
    assert [b.shape[1] for b in found.generated_BT] == [n + CACHED_TOKENS + 1 for n in SEQUENCE_TOKENS]
