"""Many sequences at a time: each is what the model would say alone, whatever stands beside it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from blockexpand.live import generation
from blockexpand.live.generation import generate

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "sliding window": ("mistral", {"sliding_window": 8}),
    "both kinds of attention": (
        "gemma3_text",
        {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
        },
    ),
    "learnt positions": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "a state beside attention": ("mamba", {"state_size": 4}),
}


def make(name: str) -> PreTrainedModel:
    kind, more = FAMILIES[name]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**SIZES | more)).eval()


PROMPTS = [[1, *(random.Random(number).randrange(3, 96) for _ in range(number % 7 * 3))] for number in range(13)]


def alone(model: PreTrainedModel, prompt: list[int], num_new: int, end: int) -> list[int]:
    """What the model says without a cache, a batch or a pad."""
    tokens, made = torch.tensor([prompt]), []
    with torch.no_grad():
        while len(made) < num_new and (not made or made[-1] != end):
            token = int(model(tokens, use_cache=False).logits[0, -1].argmax())
            made.append(token)
            tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_the_likeliest_tokens_are_those_of_each_prompt_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    if name != "a state beside attention":  # the others run together, or nothing is gained
        monkeypatch.setattr(generation, "_alone", None)
    plain = [alone(model, prompt, 20, -1) for prompt in PROMPTS]
    # The token said most ends sequences, so that they end at different steps and others take their place.
    end = Counter(token for made in plain for token in made).most_common(1)[0][0]
    expected = [alone(model, prompt, 20, end) for prompt in PROMPTS]
    assert len({len(made) for made in expected}) > 1, "all end alike, so no row is replaced"
    told: list[int] = []
    assert generate(model, PROMPTS, num_new=20, ends=[end], rows=4, done=told.append) == expected
    assert sum(told) == len(PROMPTS)


def test_what_is_drawn_depends_on_the_seed_and_not_on_the_batch() -> None:
    model = make("llama")
    drawn = generate(model, PROMPTS, num_new=16, ends=[2], seed=3, rows=13)
    assert generate(model, PROMPTS, num_new=16, ends=[2], seed=3, rows=2) == drawn
    assert generate(model, PROMPTS, num_new=16, ends=[2], seed=4, rows=13) != drawn


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    model = make("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)  # uneven enough to tell
        likely = torch.softmax(model(torch.tensor([[1, 5]])).logits[0, -1], 0)
    number = 4000
    drawn = generate(model, [[1, 5]] * number, num_new=1, ends=[2], seed=0, rows=500)
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=96)
    deviations = (counts - number * likely) / (number * likely * (1 - likely)).sqrt().clamp(min=1)
    assert deviations.abs().max() < 5
