"""How a model speaks: beginnings of held-out documents, continued by it, for people to read.

In: a prepared corpus; a model. Out: prompts as tokens and words, and the likeliest words after
each. Of chats a prompt ends where the answer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from blockexpand.checkpoint import locate_model
from blockexpand.corpus import Corpus
from blockexpand.corpus.tokenizer import load_tokenizer
from blockexpand.families.modules import load_model
from blockexpand.live.device import choose_device, training_dtype
from blockexpand.live.generation import CONTEXT_KEYS

_PROMPT_TOKENS, _NEW_TOKENS = 32, 48
"""Enough to see what it is about, and how it goes on."""

Prompt = tuple[int, ...]


def beginnings(corpus: Corpus, number: int, split: str = "test") -> list[Prompt]:
    """The first tokens of some documents of a split."""
    rows = corpus.rows(split)
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
    import torch

    folder = locate_model(model)
    where = choose_device(device)
    loaded: Any = load_model(folder, dtype=training_dtype("auto", folder, where), device=str(where))
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder)
    text = loaded.config.get_text_config().to_dict()
    room = min((text[key] for key in CONTEXT_KEYS if isinstance(text.get(key), int)), default=1 << 30)
    said = []
    for prompt in prompts:
        tokens_1A = torch.tensor([prompt], device=where)
        made_1A = loaded.generate(
            input_ids=tokens_1A,
            attention_mask=torch.ones_like(tokens_1A),
            max_new_tokens=max(1, min(_NEW_TOKENS, room - len(prompt))),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.eos_token_id,
        )
        new = made_1A[0, len(prompt) :].tolist()
        said.append(tuple(tokenizer.decode(part, skip_special_tokens=True).strip() for part in (prompt, new)))
    return said
