"""How likely each token of a text was, after those before it.

In: a model as it is to answer, and tokens. Out: for each token but the first its log-probability in nats, and the
likeliest ones in its place, from one pass over all of them; logits are never all held. Refused: a model whose logits
are not what its head gives (TrainingError, by `check_head`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blockexpand.live.forward import RowBatch, check_head, hidden_states
from blockexpand.live.parts import head_of

# T = tokens of the text, C = positions of one chunk, D = hidden size, V = vocabulary, K = likeliest tokens.

_CHUNK_POSITIONS = 512
_LEAST = -9999.0
"""For what JSON cannot say, minus infinity; OpenAI's reference has it so."""


class Scored(NamedTuple):
    """One token in its place."""

    token: int
    logprob: float | None
    """None for the first: nothing stands before it."""
    likeliest: tuple[tuple[int, float], ...]
    """Tokens and log-probabilities, the likeliest first."""


@torch.inference_mode()
def score(model: PreTrainedModel, tokens: Sequence[int], num_likeliest: int) -> list[Scored]:
    """Every token of a text of one or more."""
    positions_1T = np.arange(len(tokens))[None]
    batch = RowBatch.of(np.array([list(tokens)]), positions_1T, positions_1T > 0, model.device)
    check_head(model, batch)
    head, found = head_of(model), [Scored(tokens[0], None, ())]
    hidden_TD = hidden_states(model, batch)[0, :-1]
    for start in range(0, len(hidden_TD), _CHUNK_POSITIONS):
        logprobs_CV = head.logits_CV(hidden_TD[start : start + _CHUNK_POSITIONS]).float().log_softmax(-1)
        logprobs_CV.clamp_(min=_LEAST)
        targets_C = batch.tokens_BT[0, start + 1 : start + 1 + len(logprobs_CV)]
        top_CK = logprobs_CV.topk(num_likeliest)
        own = logprobs_CV.gather(1, targets_C[:, None])[:, 0].tolist()
        for token, logprob, ids, values in zip(
            targets_C.tolist(), own, top_CK.indices.tolist(), top_CK.values.tolist(), strict=True
        ):
            found.append(Scored(token, logprob, tuple(zip(ids, values, strict=True))))
    return found


def as_logprobs(scored: Sequence[Scored], tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    """In the shape of OpenAI's completions; the token itself is always among the named ones."""
    named: list[dict[str, float] | None] = []
    for one in scored:
        if one.logprob is None:
            named.append(None)
            continue
        own = () if one.token in dict(one.likeliest) else ((one.token, one.logprob),)
        # The likeliest last: where two tokens look alike, its figure stays.
        named.append({text_of(token, tokenizer): value for token, value in (*own, *reversed(one.likeliest))})
    return {
        "tokens": [text_of(one.token, tokenizer) for one in scored],
        "token_logprobs": [one.logprob for one in scored],
        "top_logprobs": named,
    }


def text_of(token: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """A token as text, or, where it is no text by itself, as the vocabulary has it."""
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    return str(tokenizer.convert_ids_to_tokens(token)) if "\N{REPLACEMENT CHARACTER}" in text else text
