"""`generate` and `pipeline` of transformers on an expanded folder; its server: agents/test_transformers_serve.py."""

from __future__ import annotations

import pytest
import torch
from transformers import pipeline

import blockexpand
from world_ground import PROMPTS, World, continue_by_hand

COUNT = 12


@pytest.mark.parametrize("prompt", PROMPTS)
def test_generate_with_its_cache_says_what_the_plain_forward_pass_says(world: World, prompt: str) -> None:
    model, tokens_BT = world.model(), world.tokens(prompt)
    said_BT = model.generate(tokens_BT, max_new_tokens=COUNT, min_new_tokens=COUNT, do_sample=False)
    assert model.config.num_hidden_layers == len(model.model.layers) == world.plan.num_blocks
    expected_BT = continue_by_hand(model, tokens_BT, COUNT)
    assert 1 not in expected_BT[0, tokens_BT.shape[1] :], "the sentence ends too early for this test"
    assert said_BT.tolist() == expected_BT.tolist()
    assert said_BT.tolist() != world.model(world.base).generate(tokens_BT, max_new_tokens=COUNT).tolist()


def test_a_cache_has_one_layer_for_each_block_old_and_new(world: World) -> None:
    with torch.no_grad():
        cache = world.model()(input_ids=world.tokens(), use_cache=True).past_key_values
    assert len(cache) == world.plan.num_blocks
    assert {cache.get_seq_length(layer) for layer in range(len(cache))} == {world.tokens().shape[1]}


def test_bypassed_blocks_generate_the_base(world: World) -> None:
    model, _ = blockexpand.load(world.grown)
    tokens_BT = world.tokens()
    with blockexpand.bypass(model):
        ours = model.generate(tokens_BT, max_new_tokens=COUNT, do_sample=False)
    assert ours.tolist() == world.model(world.base).generate(tokens_BT, max_new_tokens=COUNT, do_sample=False).tolist()


def test_the_text_pipeline_takes_the_folder(world: World) -> None:
    speak = pipeline("text-generation", model=str(world.grown), dtype=torch.float32, device="cpu")
    tokenizer, tokens_BT = world.tokenizer(), world.tokens()
    said = speak(PROMPTS[0], max_new_tokens=COUNT, do_sample=False, return_full_text=False)[0]["generated_text"]
    expected_BT = continue_by_hand(world.model(), tokens_BT, COUNT)
    assert said == tokenizer.decode(expected_BT[0, tokens_BT.shape[1] :], skip_special_tokens=True)


def test_the_chat_pipeline_finds_the_template_in_the_folder(world: World) -> None:
    speak = pipeline("text-generation", model=str(world.grown), dtype=torch.float32, device="cpu")
    messages = [{"role": "user", "content": "Who was the king?"}]
    answer = speak(messages, max_new_tokens=COUNT, do_sample=False)[0]["generated_text"]
    tokenizer = world.tokenizer()
    tokens_BT = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt").input_ids
    model = world.model()
    said_BT = model.generate(tokens_BT, max_new_tokens=COUNT, do_sample=False)
    text = tokenizer.decode(said_BT[0, tokens_BT.shape[1] :], skip_special_tokens=True)
    assert [turn["role"] for turn in answer] == ["user", "assistant"]
    assert answer[-1]["content"] == text
