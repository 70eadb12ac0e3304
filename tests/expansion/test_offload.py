"""Proofs of models larger than the memory: their blocks stay on the disk, and every answer is the whole model's."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from blockexpand.checkpoint import open_checkpoint
from blockexpand.errors import ExpansionError
from blockexpand.expansion import expand, memory_proof, plan, proof, verify
from blockexpand.expansion.memory_proof import answers
from blockexpand.families import family_for
from blockexpand.families.modules import load_model, load_offloaded
from helpers import MakeBase

sys.path.insert(0, str(Path(__file__).parents[1] / "families"))
from zoo import ZOO, write

CHOSEN = ("llama", "gemma2", "mixtral", "falcon", "jamba")


@pytest.mark.parametrize("family", CHOSEN)
def test_every_answer_is_the_whole_models(family: str, tmp_path: Path) -> None:
    row = next(row for row in ZOO if row.family == family)
    checkpoint = open_checkpoint(write(row, tmp_path / "base", torch.float32))
    found = family_for(checkpoint.config, checkpoint.source, checkpoint.tensors)
    expected = answers(load_model(checkpoint.folder, dtype=torch.float32, loader=found.loader))
    model = load_offloaded(checkpoint.folder, found, dtype=torch.float32, scratch=tmp_path / "scratch")
    assert all(p.is_meta for p in model.get_submodule(found.stack.module).parameters())
    given = answers(model)
    for one, other in zip(vars(expected).values(), vars(given).values(), strict=True):
        assert [t.numpy().tobytes() for t in one] == [t.numpy().tobytes() for t in other]
    assert all(p.is_meta for p in model.get_submodule(found.stack.module).parameters())


@pytest.fixture
def pair(own_base: MakeBase, tmp_path: Path) -> tuple[Path, Path]:
    base = own_base("llama", sharded=True)
    expand(base, tmp_path / "out", plan(base, 2))
    return base, tmp_path / "out"


def change(folder: Path, name: str) -> None:
    entry = open_checkpoint(folder).tensors[name]
    with open(folder / entry.file, "r+b") as stream:
        stream.seek(entry.start)
        stream.write(b"\x00\x40")


def test_it_makes_the_same_checks_but_for_the_step_and_says_so(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = pair
    whole = verify(base, out, memory_gb=100)
    # Chosen by itself when the model does not fit.
    monkeypatch.setattr(proof, "free_bytes", lambda _: 1000)
    found = verify(base, out)
    assert found.passed
    assert (whole.left_out, found.left_out) == ((), (memory_proof.NO_STEP,))
    assert whole.checks[:-4] == found.checks
    change(out, "model.layers.2.mlp.down_proj.weight")
    bypassed = verify(base, out, trained=True)
    assert (bypassed.passed, bypassed.left_out) == (True, ())
    change(out, "model.layers.4.mlp.up_proj.weight")
    failed = {check.name.split(" in ")[0] for check in verify(base, out).checks if not check.passed}
    assert {"logits are the base's", "logits through the KV cache are the base's"} <= failed


def test_memory_is_asked_of_the_system_and_checked(pair: tuple[Path, Path]) -> None:
    assert 1e7 < (proof.free_bytes("cpu") or 0) < 1e14
    for wrong in (0.0, -3.0, float("nan"), float("inf")):
        with pytest.raises(ExpansionError, match=f"is {wrong} GB"):
            verify(*pair, memory_gb=wrong)
