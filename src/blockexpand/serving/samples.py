"""How a model speaks: beginnings of held-out documents, continued by it, for people to read.

In: a prepared corpus; a model. Out: prompts as tokens and words, and the likeliest words after
each. Of chats a prompt ends where the answer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from transformers import PreTrainedModel

from blockexpand.checkpoint import locate_model
from blockexpand.corpus import Corpus
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.families.modules import load_model
from blockexpand.live.device import choose_device, training_dtype
from blockexpand.live.generation import context_of, ends_of_model, generate

_PROMPT_TOKENS, _NEW_TOKENS = 32, 48
"""Enough to see what it is about, and how it goes on."""

Prompt = tuple[int, ...]


def beginnings(corpus: Corpus, number: int) -> list[Prompt]:
    """The first tokens of some test documents."""
    rows = corpus.rows("test")
    found: list[Prompt] = []
    for index in range(rows.num_rows):
        (tokens_T,) = rows.tokens_NT(np.array([index]))
        (trained_T,) = rows.trained_NT(np.array([index]))
        length = rows.lengths(np.array([index]))[0][0]
        (answers,) = np.nonzero(trained_T[1:length])
        first = int(answers[0]) + 1 if len(answers) else length
        end = first if first > 1 else min(_PROMPT_TOKENS, length // 2)
        if end >= 2:
            found.append(tuple(int(token) for token in tokens_T[:end]))
        if len(found) == number:
            break
    return found


def continue_texts(model: Any, prompts: Sequence[Prompt], device: str = "auto") -> list[tuple[str, str]]:
    """Each prompt in words, and the likeliest words after it.

    Raises:
        LiveError: the model cannot be loaded.
    """
    folder = locate_model(model)
    where = choose_device(device)
    loaded = load_model(folder, dtype=training_dtype("auto", folder, where), device=str(where))
    model, tokenizer = cast(PreTrainedModel, loaded), load_tokenizer(folder)
    room = (context_of(model) or 1 << 30) - max(map(len, prompts), default=0)
    ends = ends_of_model(model, tokenizer)
    made = generate(model, prompts, num_new=max(1, min(_NEW_TOKENS, room)), ends=ends)

    def words(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    return [(words(prompt), words(new)) for prompt, new in zip(prompts, made, strict=True)]
