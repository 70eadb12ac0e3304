"""examples/method.py: the method in one file gives what the library gives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import blockexpand
from helpers import MakeBase, make_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def method() -> ModuleType:
    spec = importlib.util.spec_from_file_location("method", ROOT / "examples" / "method.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_fits_on_three_pages_and_imports_nothing_of_ours() -> None:
    text = (ROOT / "examples" / "method.py").read_text()
    assert len(text.splitlines()) <= 150
    assert "import blockexpand" not in text
    assert "from blockexpand" not in text


def test_the_same_model_the_same_step(method: ModuleType, tiny_base: MakeBase, tmp_path: Path) -> None:
    """Grown, run as the base, and trained for a step with KL: every weight is the library's."""
    base = tiny_base("llama")
    rows = torch.randint(3, 90, (2, 2, 16), generator=torch.Generator().manual_seed(0))

    by_hand = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    logits = by_hand(rows[0]).logits
    old, new, stack = method.expand(by_hand, 2)
    assert torch.equal(by_hand(rows[0]).logits, logits)

    blockexpand.expand(base, tmp_path / "deeper", blockexpand.plan(base, blocks=2))
    ours, _ = blockexpand.load(tmp_path / "deeper", dtype=torch.float32)
    trained = dict(blockexpand.freeze(ours))
    assert same(by_hand, ours)
    assert {n for n, p in by_hand.named_parameters() if p.requires_grad} == set(trained)

    optimizers = [torch.optim.AdamW([p for block in new for p in block.parameters()], lr=1e-2)]
    optimizers.append(torch.optim.AdamW(trained.values(), lr=1e-2))
    for _ in range(2):  # at the first step only what is zero has a gradient
        total, _, kl = method.step_loss(by_hand, old, stack, *rows)
        total.backward()
        loss = method.cross_entropy(method.log_probabilities(ours, rows[0]), rows[0])
        with torch.no_grad(), blockexpand.bypass(ours):
            before = method.log_probabilities(ours, rows[1])
        now = method.log_probabilities(ours, rows[1])
        (loss + method.KL_WEIGHT * (before.exp() * (before - now)).sum(-1).mean()).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert kl > 0
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(value, ours.state_dict()[name], rtol=1e-4, atol=1e-5)
    with method.bypass(by_hand, old, stack):
        assert torch.equal(by_hand(rows[0]).logits, logits)


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_the_whole_of_it(method: ModuleType, own_base: MakeBase, tmp_path: Path, capsys: Any) -> None:
    """From texts to a folder that transformers loads, scaled to what the bound allows; s = 0 is the base."""
    base = own_base("llama")
    make_tokenizer().save_pretrained(base)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog"]
    for name, step in (("domain", 3), ("general", 5)):
        texts = [" ".join(words[(i * step + j) % 8] for j in range(30)) for i in range(40)]
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts))
    vars(method).update(ROW=24)
    method.main(str(base), tmp_path / "domain.txt", tmp_path / "general.txt", str(tmp_path / "out"), 3)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("s = ")
    deeper = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert deeper.config.num_hidden_layers == 8


def test_the_bound_is_above_the_rise_and_closes_in(method: ModuleType) -> None:
    """Documents are the units: four times as many of the same spread halve the distance."""
    before = [10.0 + i % 7 for i in range(100)]
    after = [b * (1.005 + 0.02 * (-1) ** i) for i, b in enumerate(before)]
    rise, bound = method.bound_of_rise(before, after)
    again, closer = method.bound_of_rise(before * 4, after * 4)
    assert rise == pytest.approx(0.005, abs=1e-3)
    assert again == pytest.approx(rise)
    assert (closer - rise) / (bound - rise) == pytest.approx(0.5, rel=0.02)
