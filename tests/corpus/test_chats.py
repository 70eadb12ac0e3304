"""Chats: every usual format becomes turns, one rendering for all, and what a template raises is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from blockexpand.corpus.chats import (
    answer_spans,
    chat_fields,
    check_embeddings,
    messages_of,
    render,
    render_prompt,
)
from blockexpand.corpus.tokenizer import Encoder, embeddings_of, ends_of, load_tokenizer
from blockexpand.errors import CorpusError
from lm_helpers import make_lm

SYSTEM, ASKED, SAID = (
    {"role": role, "content": content}
    for role, content in (("system", "be kind"), ("user", "the cat?"), ("assistant", "the dog."))
)
CHAT = [SYSTEM, ASKED, SAID, {"role": "user", "content": "why?"}, {"role": "assistant", "content": "é the tree."}]
REWRITING = (  # as Qwen 3's: thoughts of earlier turns are left out
    "{% for m in messages %}{{ m['role'] }}:"
    "{{ m['content'] if loop.last else m['content'].split('|')[-1] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lm(tmp_path_factory.mktemp("lm") / "base")


@pytest.fixture
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"messages": [SYSTEM, ASKED, SAID], "source": "x"}, [SYSTEM, ASKED, SAID]),
        ({"conversations": [{"from": "human", "value": "the cat?"}, {"from": "gpt", "value": "the dog."}]}, None),
        ({"messages": None, "conversations": [ASKED, SAID]}, None),
        ({"instruction": "the cat?", "input": "", "output": "the dog."}, None),
        ({"instruction": "the", "input": "cat?", "output": "the dog."}, [{**ASKED, "content": "the\n\ncat?"}, SAID]),
        ({"instruction": "the cat?", "output": "the dog.", "system": "be kind"}, [SYSTEM, ASKED, SAID]),
        ({"prompt": [ASKED], "completion": [SAID]}, None),
        (
            {
                "messages": [
                    {**ASKED, "content": [{"type": "text", "text": "the"}, {"type": "text", "text": "cat?"}]},
                    SAID,
                ]
            },
            [{**ASKED, "content": "the\ncat?"}, SAID],
        ),
    ],
)
def test_every_usual_format_becomes_turns(row: dict[str, Any], found: list[Any] | None) -> None:
    assert list(messages_of(row, "line 1")) == (found or [ASKED, SAID])


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({"messages": [ASKED]}, "no assistant turn"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "None"),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "tool"),
        ({"messages": [ASKED, {"role": "tool", "content": "21"}, SAID]}, "'tool'"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "'function_call'"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, SAID]}, "image"),
        ({"messages": "hello"}, "'hello'"),
        ({"instruction": "a", "output": 3}, "3"),
        ({"question": "a"}, "question"),
        ("text", "'text'"),
    ],
)
def test_what_is_no_chat_is_told_by_its_value(row: Any, value: str) -> None:
    with pytest.raises(CorpusError, match=rf"line 7.*{value}"):
        messages_of(row, "line 7")


def test_columns_that_make_a_chat() -> None:
    assert chat_fields(["id", "messages"]) == ("messages",)
    assert chat_fields(["input", "instruction", "output"]) == ("instruction", "output", "input")
    assert chat_fields(["instruction", "output", "text"]) == ()
    assert chat_fields(["text", "title"]) == ()


def test_only_the_assistants_turns_and_their_ends_are_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    full, spans = answer_spans(tokenizer, CHAT, "chat 1")
    assert [full[a:b] for a, b in spans] == ["the dog.<|end|>", "é the tree.<|end|>"]
    (one,), (whole,) = (Encoder(tokenizer, all_turns=every).encode_chats([("chat 1", CHAT)]) for every in (False, True))
    assert not isinstance(one, CorpusError)
    assert not isinstance(whole, CorpusError)
    trained = tokenizer.decode(one.tokens_A[one.trained_A].tolist())
    assert trained == "the dog.<|end|>é the tree.<|end|>"
    assert tokenizer.decode(one.tokens_A.tolist()) == full
    assert whole.tokens_A.tolist() == one.tokens_A.tolist()
    assert whole.trained_A.tolist() == [False] + [True] * (len(one.tokens_A) - 1)


def test_a_prompt_is_what_was_trained_before_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": "cat?"}]}
    for asked in (ASKED, parts):
        row = messages_of({"messages": [asked, SAID]}, "chat 1")
        (one,) = Encoder(tokenizer).encode_chats([("chat 1", row)])
        assert not isinstance(one, CorpusError)
        assert render_prompt(tokenizer, [asked]) == one.tokens_A[: one.trained_A.argmax()].tolist()


def test_a_template_that_rewrites_earlier_turns_trains_the_last_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = REWRITING
    turns = [ASKED, {"role": "assistant", "content": "hm|yes"}, ASKED, {"role": "assistant", "content": "oh|no"}]
    full, spans = answer_spans(tokenizer, turns, "chat 1")
    assert [full[a:b] for a, b in spans] == ["oh|no\n"]
    tokenizer.chat_template = REWRITING.replace("assistant:{% endif %}", "assistant:<think>{% endif %}")
    full, spans = answer_spans(tokenizer, turns, "chat 1")
    assert [full[a:b] for a, b in spans] == ["oh|no\n"]


def test_a_chat_that_begins_with_the_assistant_trains_what_can_be_asked_for(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{{ raise_exception('nothing was said') if not messages }}{{ messages[0]['content'] }}"
        "{% for m in messages[1:] %}|{{ m['content'] }}{% endfor %}"
    )
    full, spans = answer_spans(tokenizer, [SAID, ASKED, SAID], "chat 1")
    assert [full[a:b] for a, b in spans] == ["|the dog."]
    with pytest.raises(CorpusError, match="chat 1"):
        answer_spans(tokenizer, [SAID], "chat 1")


def test_what_a_template_raises_is_one_line(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    for template in ("{{ raise_exception('no\nway') }}", "{{ messages[9]['content'] }}", "{{ 1 / 0 }}", "{% for"):
        tokenizer.chat_template = template
        with pytest.raises(CorpusError) as caught:
            render(tokenizer, [ASKED], prompt=True)
        assert "\n" not in str(caught.value)
        (bad,) = Encoder(tokenizer).encode_chats([("chat 3", [ASKED, SAID])])
        assert str(bad).startswith("chat 3")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] if m['role'] == 'user' }}{% endfor %}"
    (bad,) = Encoder(tokenizer).encode_chats([("chat 3", [ASKED, SAID])])
    assert isinstance(bad, CorpusError)
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(CorpusError, match="rag, tool_use"):
        render(tokenizer, [ASKED], prompt=True)
    tokenizer.chat_template = None
    with pytest.raises(CorpusError, match="no chat template"):
        render(tokenizer, [ASKED], prompt=True)


def test_tokens_beyond_the_embeddings_and_special_words_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    largest = max(render_prompt(tokenizer, [ASKED]))
    assert render_prompt(tokenizer, [ASKED], num_embeddings=largest + 1)
    with pytest.raises(CorpusError, match=f"token {largest} "):
        render_prompt(tokenizer, [ASKED], num_embeddings=largest)
    check_embeddings(5, 6, tokenizer)
    (bad,) = Encoder(tokenizer).encode_chats([("chat 2", [{"role": "user", "content": "say <|end|>"}, SAID])])
    assert "'<|end|>'" in str(bad)


# --- Texts as tokens: they begin as the tokenizer begins them, end with a trained end token, and stay text ---


def test_texts_end_trained_and_begin_as_the_tokenizer_begins_them(tokenizer: PreTrainedTokenizerBase) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert ends_of(tokenizer).bos == bos
    for begins in (True, False):
        template = "<|begin|> $A" if begins else "$A"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[attr-defined]
            single=template, special_tokens=[("<|begin|>", bos)] if begins else []
        )
        (one, mentions, empty) = Encoder(tokenizer).encode_texts(["the cat sees", "a <|end|> b", ""])
        assert (one.tokens_A[0] == bos) == begins
        assert one.tokens_A[-1] == eos
        assert one.trained_A.tolist() == [False] + [True] * (len(one.tokens_A) - 1)
        assert tokenizer.decode(one.tokens_A[begins:-1].tolist()) == "the cat sees"
        # A text that mentions <|end|> must not end documents: what is text stays text.
        assert (mentions.tokens_A == eos).sum() == 1
        assert empty.tokens_A.tolist() == [bos] * begins + [eos]
    assert Encoder(tokenizer).encode_texts([]) == []


def test_what_cannot_be_used_is_refused(tokenizer: PreTrainedTokenizerBase, model: Path, tmp_path: Path) -> None:
    assert embeddings_of(model) == len(tokenizer)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="broken"):
        load_tokenizer(tmp_path / "broken")
    assert embeddings_of(tmp_path / "broken") is None
    tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="eos_token_id None"):
        Encoder(tokenizer)
