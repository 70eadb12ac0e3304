"""The shipped tiny base: it is what its record says, and a language model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from studies.tiny_base.make import RECORD, TinyBaseShape, make
from transformers import AutoModelForCausalLM

from blockexpand.checkpoint import open_checkpoint
from blockexpand.corpus.tokenizer import load_tokenizer, tokenizer_digest
from blockexpand.data import TINY_BASE as BASE
from blockexpand.errors import CorpusError
from blockexpand.evaluation.measurement import model_digest

pytestmark = pytest.mark.slow  # a network of a few million parameters


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """As it was written in November 2026, in an older form than what is read today."""
    return json.loads(RECORD.read_text())


def test_it_is_small_and_of_the_shape_that_was_asked_for(record: dict[str, Any]) -> None:
    config = open_checkpoint(BASE).config
    assert (BASE / "model.safetensors").stat().st_size <= 25e6
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert 8 <= config["num_hidden_layers"] <= 12
    assert 5e6 <= record["run"]["num_parameters"] <= 12e6
    assert record["shape"] == asdict(TinyBaseShape())
    assert config["num_hidden_layers"] == record["shape"]["num_blocks"]
    assert {tensor.dtype for tensor in open_checkpoint(BASE).tensors.values()} == {"BF16"}


def test_the_record_is_about_these_weights_and_this_tokenizer(record: dict[str, Any]) -> None:
    assert record["model_digest"] == model_digest(BASE)
    assert record["corpus"]["tokenizer_digest"] == tokenizer_digest(BASE)


def test_the_record_beats_random_weights_clearly(record: dict[str, Any]) -> None:
    trained, untrained = record["held_out"]["trained"], record["held_out"]["untrained"]
    assert untrained["loss"] == pytest.approx(math.log(4096), rel=0.05)
    assert trained["loss"] < 0.5 * untrained["loss"]
    assert record["curve"][0]["validation_loss"] > record["curve"][-1]["validation_loss"]


def test_it_knows_english() -> None:
    """Word order, and which word comes next: text of ours that it cannot have seen."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(BASE)

    def loss(text: str) -> float:
        tokens_BT = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            return model(tokens_BT, labels=tokens_BT).loss.item()

    good = "The function returns a list of the names that were given to it, or an empty list if there are none."
    words = good.split()
    assert loss(good) < loss(" ".join(reversed(words))) - 1
    assert loss(good) < 0.6 * math.log(4096)


def test_making_it_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusError, match="holds none of the folders wiki"):
        make(tmp_path / "work", tmp_path / "empty")
