"""Models run block by block: how many blocks are in memory, and the proof. (families/test_by_block.py: same bits.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import ExpansionError
from blockexpand.expansion import expand, lockstep, memory_proof, plan, proof, verify
from blockexpand.expansion.lockstep import BlockByBlock, block_bytes, tensor_bytes
from blockexpand.expansion.memory_proof import sequences
from blockexpand.families import family_for
from helpers import MakeBase


def by_block(folder: Path, num_at_once: int = 1, dtype: torch.dtype = torch.float32) -> BlockByBlock:
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    sizes = block_bytes(checkpoint, family, dtype)
    memory = tensor_bytes(checkpoint, dtype) - sum(sizes) + 2 * num_at_once * max(sizes)
    return BlockByBlock(checkpoint, family, dtype=dtype, device="cpu", memory=memory)


@pytest.mark.parametrize(("at_once", "num_loads"), [(1, 4), (3, 2), (4, 1), (9, 1)])
def test_no_more_blocks_than_allowed_are_in_memory(
    tiny_base: MakeBase, at_once: int, num_loads: int, monkeypatch: pytest.MonkeyPatch
):
    blocks = by_block(tiny_base("llama"), at_once)
    held, loads = [], []
    stack = blocks.model.get_submodule("model.layers")
    real = lockstep.load_blocks
    monkeypatch.setattr(lockstep, "load_blocks", lambda *a, **k: loads.append(a[3]) or real(*a, **k))

    def look(*_: object) -> None:
        held.append(sum(not next(block.parameters()).is_meta for block in stack.children()))

    for block in stack.children():
        block.register_forward_hook(look)
    tokens_BT = sequences(blocks.model)[0]
    first, second = blocks.run([lambda: blocks.model(tokens_BT, use_cache=False).logits] * 2)
    assert torch.equal(first, second)
    assert max(held) == min(at_once, 4)
    assert len(held) == 2 * 4
    assert len(loads) == num_loads
    assert all(parameter.is_meta for parameter in stack.parameters())


def test_an_error_in_one_function_ends_the_others(tiny_base: MakeBase):
    blocks = by_block(tiny_base("llama"))
    tokens_BT = sequences(blocks.model)[0]

    def fail() -> Tensor:
        blocks.model(tokens_BT)
        raise ValueError("from a thread")

    with pytest.raises(ValueError, match="from a thread"):
        blocks.run([lambda: blocks.model(tokens_BT).logits, fail, lambda: blocks.model(tokens_BT).logits])
    (logits_BTV,) = blocks.run([lambda: blocks.model(tokens_BT).logits])
    assert logits_BTV.shape[:2] == tokens_BT.shape


@pytest.fixture
def pair(tiny_base: MakeBase, tmp_path: Path) -> tuple[Path, Path]:
    base = tiny_base("llama")
    expand(base, tmp_path / "out", plan(base, 2))
    return base, tmp_path / "out"


def enough(folder: Path) -> float:
    """GB for two blocks at once in float32."""
    checkpoint = open_checkpoint(folder)
    family = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    sizes = block_bytes(checkpoint, family, torch.float32)
    return (tensor_bytes(checkpoint, torch.float32) - sum(sizes) + 4 * max(sizes)) / 1e9


def test_the_proof_by_block_makes_the_same_checks_but_for_the_step_and_says_so(pair: tuple[Path, Path]):
    base, out = pair
    whole, found = verify(base, out), verify(base, out, memory_gb=enough(out))
    assert found.passed
    assert found.left_out == (memory_proof.NO_STEP,)
    assert found.lines[-1] == f"--   left out: {memory_proof.NO_STEP}"
    assert whole.left_out == ()
    names = [check.name for check in whole.checks]
    assert [check.name for check in found.checks] == names[: len(found.checks)]
    assert names[len(found.checks) :] == [check.name for check in whole.checks[-4:]]
    figures = {check.name: check.figure for check in whole.checks}
    assert all(check.figure == figures[check.name] for check in found.checks if "greedy" not in check.name)


def test_the_proof_by_block_finds_what_the_whole_one_finds(pair: tuple[Path, Path]):
    base, out = pair
    entry = open_checkpoint(out).tensors["model.layers.4.mlp.up_proj.weight"]
    with open(out / entry.file, "r+b") as stream:
        stream.seek(entry.start)
        stream.write(b"\x00\x40")
    found = verify(base, out, memory_gb=enough(out))
    failed = {check.name.split(" in ")[0] for check in found.checks if not check.passed}
    assert {"logits are the base's", "logits through the KV cache are the base's"} <= failed


def test_the_bypassed_model_is_proved_by_block_too(pair: tuple[Path, Path]):
    base, out = pair
    entry = open_checkpoint(out).tensors["model.layers.2.mlp.down_proj.weight"]
    with open(out / entry.file, "r+b") as stream:
        stream.seek(entry.start)
        stream.write(b"\x00\x40")
    found = verify(base, out, memory_gb=enough(out), trained=True)
    assert found.passed, found.lines
    assert found.left_out == ()


def test_it_is_chosen_when_the_model_does_not_fit(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    base, out = pair
    monkeypatch.setattr(proof, "free_bytes", lambda _: int(enough(out) * 1e9))
    assert verify(base, out).left_out == (memory_proof.NO_STEP,)


def test_what_is_free_is_asked_of_the_system():
    free = proof.free_bytes("cpu")
    assert free is None or 1e7 < free < 1e14
    assert proof.free_bytes("cuda") is None


def test_too_little_memory_for_one_block_is_refused(pair: tuple[Path, Path]):
    base, out = pair
    with pytest.raises(ExpansionError, match=r"may take 1,000 bytes, and embeddings, head and one block take [\d,]+;"):
        verify(base, out, memory_gb=1e-6)


@pytest.mark.parametrize("wrong", [0.0, -3.0, float("nan"), float("inf")])
def test_memory_that_is_no_amount_is_refused(pair: tuple[Path, Path], wrong: float):
    base, out = pair
    with pytest.raises(ExpansionError, match=f"the memory of the proof is {wrong} GB; expected a number above 0"):
        verify(base, out, memory_gb=wrong)
