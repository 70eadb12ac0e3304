"""An answer in pieces: their sum is the tokenizer's text of all tokens, and it ends where it should."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from blockexpand.data import TINY_BASE as BASE
from blockexpand.serving.text_stream import TextStream
from helpers import make_tokenizer


def with_bytes() -> PreTrainedTokenizerFast:
    """Words with a mark before them, and bytes for all else, as Llama 2 has it."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581the",
        "\u2581cat",
        "s",
        "\u2581",
    ]
    made = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bytes": AutoTokenizer.from_pretrained(BASE), "words": make_tokenizer(), "fallback": with_bytes()}


def taken(tokenizer: Any, tokens: Sequence[int], **more: Any) -> tuple[list[str], TextStream]:
    """What comes out when these tokens are made one after the other, as far as they are asked for."""
    pieces = TextStream(tokenizer, more.pop("ends", ()), more.pop("most_tokens", 10**6), **more)
    for number in range(len(tokens)):
        if bool(pieces(torch.tensor([[7, *tokens[: number + 1]]]), None)[0]):
            break
    pieces.close()
    return list(pieces), pieces


def whole(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("name", list(TOKENIZERS))
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_sum_is_the_text_of_all_tokens(name: str, data: Any) -> None:
    """Of any tokens; where bytes stand for what is no word, of those of any text: there, bytes that are no text spoil
    whatever text they touch, which nobody knows before they come."""
    tokenizer = TOKENIZERS[name]
    any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).map(lambda text: tokenizer.encode(text))
    any_tokens = st.lists(st.integers(0, len(tokenizer) - 1), max_size=40)
    tokens = data.draw(any_text if name == "fallback" else any_text | any_tokens)
    assert "".join(taken(tokenizer, tokens)[0]) == whole(tokenizer, tokens)


def test_no_character_comes_in_halves() -> None:
    tokenizer = TOKENIZERS["bytes"]
    tokens = tokenizer("a \N{SNOWMAN} and \N{GRINNING FACE}!")["input_ids"]
    found, pieces = taken(tokenizer, tokens)
    assert "\N{SNOWMAN}" in "".join(found)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    assert pieces.tokens == tokens
    half = tokenizer("\N{GRINNING FACE}", add_special_tokens=False)["input_ids"][:-1]
    assert "".join(taken(tokenizer, half)[0]) == whole(tokenizer, half) != "", (
        "what is left at the end goes out as it is"
    )


@pytest.mark.parametrize("name", ["bytes", "fallback"])
def test_bytes_that_are_no_text_do_not_hold_up_what_comes(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    half = tokenizer.encode("\N{GRINNING FACE}", add_special_tokens=False)[-1]
    pieces = TextStream(tokenizer, (), 10**6)
    for length in range(1, 40):
        pieces(torch.tensor([[7, *[half] * length]]), None)
    assert pieces._pieces.qsize() > 20
    pieces.close()
    assert "".join(pieces) == whole(tokenizer, [half] * 39)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_it_ends_before_the_first_text_to_stop_at(data: Any) -> None:
    tokenizer = TOKENIZERS["words"]
    tokens = data.draw(st.lists(st.integers(4, 21), min_size=1, max_size=30))
    text = whole(tokenizer, tokens)
    stops = data.draw(st.lists(st.sampled_from(["cat sat", "at", "e o", " a ", "zzz", "roofs", text[-3:]]), max_size=3))
    found, pieces = taken(tokenizer, tokens, stops=stops)
    places = [text.find(stop) for stop in stops if stop in text]
    assert "".join(found) == text[: min(places, default=len(text))]
    assert pieces.finish == ("stop" if places else None)
    if places:
        before = whole(tokenizer, pieces.tokens[:-1])
        assert not any(stop in before for stop in stops), "no token is made after the last that is needed"


def test_how_it_ends() -> None:
    tokenizer = TOKENIZERS["words"]
    found, pieces = taken(tokenizer, [5, 6, 2, 7], ends=[2])
    assert (pieces.finish, pieces.tokens, len(found)) == ("stop", [5, 6], 2)
    found, pieces = taken(tokenizer, [5, 6, 7, 8], most_tokens=3)
    assert (pieces.finish, pieces.tokens) == ("length", [5, 6, 7])
    found, pieces = taken(tokenizer, [5, 2], ends=[2], most_tokens=2)
    assert pieces.finish == "stop", "the end itself needs no room in the answer"
    found, pieces = taken(tokenizer, [5, 6], stops=[whole(tokenizer, [5, 6])], most_tokens=2)
    assert (found, pieces.finish) == ([], "stop")
    found, pieces = taken(tokenizer, [5, 6], stops=[whole(tokenizer, [5, 6, 7])])
    assert "".join(found) == whole(tokenizer, [5, 6]), "what was held back goes out"
    stop = threading.Event()
    stop.set()
    found, pieces = taken(tokenizer, [5, 6, 7], stop=stop)
    assert (pieces.finish, pieces.tokens) == (None, [5])
