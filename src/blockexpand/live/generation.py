"""Tokens from a model: transformers' own `generate`, on prompts of equal length, with nothing left to defaults; and
what bounds an answer, the tokens that end it and the positions there are."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blockexpand.checkpoint import end_tokens

# B = prompts of a pass, A = tokens of one sequence.

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What config classes call the number of positions."""


def context_of(model: PreTrainedModel) -> int | None:
    """The tokens that the model was made for; None for those without a limit of their own (state-space models)."""
    entries = model.config.get_text_config().to_dict()
    return min((entries[key] for key in CONTEXT_KEYS if isinstance(entries.get(key), int)), default=None)


def ends_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, those that the model's settings add, and the end of a turn."""
    return end_tokens(tokenizer, model.generation_config.eos_token_id if model.generation_config else None)


@torch.no_grad()
def generate(model: PreTrainedModel, prompts_BA: Tensor, *, num_new: int, eos: int | list[int], sample: bool) -> Tensor:
    """The prompts and what the model adds to each, int64 [B, A + new]; ended ones are filled up with `eos`.

    Args:
        model: A causal language model in eval mode.
        prompts_BA: Prompts of equal length, so that nothing is padded.
        num_new: New tokens at most.
        eos: The token that ends a sequence, or several of them; the first one fills up.
        sample: Draw from the whole distribution at temperature 1, instead of taking the likeliest.
    """
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {}
    return cast(Any, model).generate(
        input_ids=prompts_BA,
        attention_mask=torch.ones_like(prompts_BA),
        max_new_tokens=num_new,
        do_sample=sample,
        pad_token_id=eos if isinstance(eos, int) else eos[0],
        eos_token_id=eos,
        **settings,
    )
