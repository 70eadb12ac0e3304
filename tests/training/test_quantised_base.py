"""A base quantised to 8 or 4 bits under whole new blocks: still an identity, still inside, trained, exported whole.

Skipped where bitsandbytes is not installed (it is an extra).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from blockexpand import live
from blockexpand.errors import RecordError, TrainingError
from blockexpand.expansion import verify
from blockexpand.families.modules import load_model
from blockexpand.live.parts import blocks_of
from blockexpand.records.run import FullArm, RetentionSettings, read_metrics
from blockexpand.training import arms as quantised
from blockexpand.training import train
from blockexpand.training.arms import Blocks, is_packed, quantisation
from lm_helpers import make_expanded
from training_ground import Ground

needs_it = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
KINDS: tuple[Any, ...] = ("int8", "nf4")


@pytest.fixture(scope="module")
def wide(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A base of hidden size 64, since bitsandbytes packs 4-bit weights for the CPU in blocks of 64; not trained."""
    root = tmp_path_factory.mktemp("wide")
    shutil.copytree(ground.base, root / "base")
    config = AutoConfig.from_pretrained(ground.base)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 16})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(root / "base")
    return dataclasses.replace(ground, base=root / "base", expanded=make_expanded(root / "expanded", root / "base"))


def logits(model: Any) -> Tensor:
    tokens = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def base_of(ground: Ground, kind: Any) -> nn.Module:
    """The base itself, quantised in the same way, without any block of ours."""
    return load_model(
        ground.base, dtype=torch.float32, quantization=quantisation(kind, torch.float32, ["lm_head"])
    ).requires_grad_(False)


@needs_it
@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_and_the_bypass_are_the_quantised_base_to_the_bit(wide: Ground, kind: Any) -> None:
    expected = logits(base_of(wide, kind))
    plain = logits(load_model(wide.base, dtype=torch.float32))
    assert (expected - plain).abs().max() > 1e-4, "nothing was quantised"
    trainee = Blocks(kind).load(wide.expanded, torch.float32, needs_reference=True)
    packed = [any(is_packed(module) for module in block.modules()) for block in blocks_of(trainee.model)]
    assert packed == [True, True, False, True, True, False]
    assert torch.equal(logits(trainee.model), expected)
    with torch.no_grad():
        for parameter in trainee.trainable.values():
            parameter.add_(torch.randn_like(parameter))
    assert not torch.equal(logits(trainee.model), expected)
    with live.bypass(trainee.model):
        assert torch.equal(logits(trainee.model), expected)
    assert {p.dtype for p in trainee.trainable.values()} == {torch.float32}


@needs_it
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_new_blocks_learn_over_a_quantised_base_and_ship_with_the_whole_one(
    wide: Ground, tmp_path: Path, kind: Any, precision: str
) -> None:
    keeping = RetentionSettings(replay=0.5, kl_weight=0.5)
    record = train(
        wide.settings(
            tmp_path / "run", base_precision=kind, precision=precision, domain_tokens=30 * 2 * 32, retention=keeping,
            recompute="from-first-new",
        )
    )  # fmt: skip
    assert record.best is not None
    assert record.base is not None
    assert record.best.domain < record.base.domain - 0.1
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4 if precision == "float32" else 2e-2)
    proof = verify(wide.base, tmp_path / "run" / "model")
    assert proof.trained
    assert proof.passed, proof.lines


def test_without_bitsandbytes_it_is_refused(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(TrainingError, match=r"base_precision is 'nf4', and bitsandbytes is not installed"):
        Blocks("nf4").load(ground.expanded, torch.float32, needs_reference=False)


def test_other_layers_than_the_old_blocks_are_refused(ground: Ground) -> None:
    model, _ = live.load(ground.expanded)
    blocks = nn.ModuleList(blocks_of(model))  # type: ignore[arg-type]
    with pytest.raises(
        TrainingError, match=r"block 0 of here has 0 of its 7 linear layers quantised; expected 7, .* old"
    ):
        quantised._check_quantised(blocks, {2, 5}, "here")
    quantised._check_quantised(blocks, set(range(6)), "here")


def test_only_new_blocks_are_trained_over_it(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"base_precision: expected same, for the arm full, got .nf4."):
        ground.settings(tmp_path, arm=FullArm(kind="full"), base_precision="nf4")
