"""The tiny base's tokenizer: nothing is unknown, text comes back as it went in, chats mark what is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies.tiny_base.tokenizer import SPECIAL_TOKENS, save_tokenizer, train_tokenizer

from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.data import TINY_BASE as BASE

TEXTS = ["the cat sees the dog. the dog sees 12 cats.", "    indented = text\n\n\nwith lines"] * 20


def test_the_same_text_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXTS, 300).to_str() == train_tokenizer(TEXTS, 300).to_str()


def test_special_tokens_come_first() -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(5))


@pytest.mark.parametrize("text", ["", " ", "a  b\n\n\n  c", "π ≠ 三 🙂 \x00", "12345", "def f(x):\n        return x\n"])
def test_text_comes_back(text: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_digits_stand_alone() -> None:
    tokenizer = train_tokenizer(["1234 1234 1234"] * 50, 300)
    assert len(tokenizer.encode("1234", add_special_tokens=False).ids) == 4


def test_transformers_reads_it_with_its_chat_template(tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(TEXTS, 300), tmp_path, 64)
    tokenizer = load_tokenizer(tmp_path)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|begin|><|user|>hi<|assistant|>ho<|end|>"
    asked = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|begin|><|user|>hi<|assistant|>"


def test_the_shipped_one_knows_code_only_as_text() -> None:
    tokenizer = load_tokenizer(BASE)
    assert len(tokenizer) == 4096
    assert tokenizer.decode(tokenizer.encode("def f():\n    pass", add_special_tokens=False)) == "def f():\n    pass"
