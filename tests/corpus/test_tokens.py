"""Tokens: EOS is trained, only the assistant's turns of a chat are, and templates that rewrite are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from blockexpand.corpus.chats import answer_spans
from blockexpand.corpus.documents import Document
from blockexpand.corpus.tokenizer import Encoder, load_tokenizer
from blockexpand.errors import CheckpointError, CorpusError
from lm_helpers import make_lm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


@pytest.fixture
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model)


CHAT = Document(
    text="",
    name="chat 1",
    messages=(
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "the cat?"},
        {"role": "assistant", "content": "the dog."},
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "é the tree."},
    ),
)


def test_plain_text_has_both_ends_and_trains_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    (one,) = Encoder(tokenizer).encode([Document(text="the cat sees", name="x")])
    assert one.tokens_A[0] == tokenizer.bos_token_id
    assert one.tokens_A[-1] == tokenizer.eos_token_id
    assert one.trained_A.tolist() == [False] + [True] * (len(one.tokens_A) - 1)
    assert tokenizer.decode(one.tokens_A[1:-1].tolist()) == "the cat sees"


def test_special_words_in_a_text_are_not_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """A corpus that mentions <|end|> must not end documents: what is text stays text."""
    (one,) = Encoder(tokenizer).encode([Document(text="a <|end|> b", name="x")])
    assert (one.tokens_A == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(one.tokens_A[1:-1].tolist()) == "a <|end|> b"


def test_special_words_in_a_conversation_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = ({"role": "user", "content": "say <|end|>"}, {"role": "assistant", "content": "no"})
    text = "\n".join(turn.content for turn in turns)
    with pytest.raises(CorpusError, match=r"chat 2 contains the special token '<\|end\|>' as text"):
        Encoder(tokenizer).encode([Document(text=text, name="chat 2", messages=turns)])


def test_only_the_assistants_turns_and_their_ends_are_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    (one,) = Encoder(tokenizer).encode([CHAT])
    trained = tokenizer.decode(one.tokens_A[one.trained_A].tolist())
    assert trained == "the dog.<|end|>é the tree.<|end|>"
    full, spans = answer_spans(tokenizer, CHAT.messages, CHAT.name)
    assert [full[a:b] for a, b in spans] == ["the dog.<|end|>", "é the tree.<|end|>"]
    assert tokenizer.decode(one.tokens_A.tolist()) == full


def test_all_turns_are_trained_if_wanted(tokenizer: PreTrainedTokenizerBase) -> None:
    (one,) = Encoder(tokenizer, all_turns=True).encode([CHAT])
    (answers,) = Encoder(tokenizer).encode([CHAT])
    assert one.tokens_A.tolist() == answers.tokens_A.tolist()
    assert one.trained_A.tolist() == [False] + [True] * (len(one.tokens_A) - 1)


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(CorpusError, match="chat 1: the chat template renders turn 3 differently when more follow"):
        answer_spans(tokenizer, CHAT.messages, CHAT.name)


def test_a_template_that_renders_nothing_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(CorpusError, match="chat 1: the chat template renders its assistant turns as no token"):
        Encoder(tokenizer).encode([CHAT])


def test_no_template_no_tokenizer_and_no_end_are_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.chat_template = None
    with pytest.raises(CorpusError, match="has no chat template"):
        answer_spans(tokenizer, CHAT.messages, CHAT.name)
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="cannot be loaded"):
        load_tokenizer(tmp_path)
    tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="has eos_token_id None; expected one token"):
        Encoder(tokenizer)


def test_an_empty_batch_is_empty(tokenizer: PreTrainedTokenizerBase) -> None:
    assert Encoder(tokenizer).encode([]) == []
    (one,) = Encoder(tokenizer).encode([Document(text="", name="x")])
    assert np.array_equal(one.tokens_A, [tokenizer.bos_token_id, tokenizer.eos_token_id])
