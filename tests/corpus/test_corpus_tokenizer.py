"""Texts as tokens: they begin as the tokenizer begins them, end with a trained end token, and stay text."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from blockexpand.corpus.tokenizer import Encoder, embeddings_of, ends_of, load_tokenizer
from blockexpand.errors import CorpusError
from lm_helpers import make_lm


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(make_lm(tmp_path / "base"))


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


def test_what_cannot_be_used_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert embeddings_of(tmp_path / "base") == len(tokenizer)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    with pytest.raises(CorpusError, match="broken"):
        load_tokenizer(tmp_path / "broken")
    assert embeddings_of(tmp_path / "broken") is None
    tokenizer.eos_token = None
    with pytest.raises(CorpusError, match="eos_token_id None"):
        Encoder(tokenizer)
