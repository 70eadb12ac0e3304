"""Whose words a trained model says (the paper's figure 6, after URIAL): how the base ranks its greedy tokens.

In: a finished comparison and the arms that are not ours. Out: of each arm's chosen run of the first seed, for each
text, the shares of tokens that the base ranks first, second or third, and lower, with an interval over prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from blockexpand.corpus import TokenRows, open_corpus
from blockexpand.errors import ComparisonError
from blockexpand.records import check, read_record
from blockexpand.records.comparison import Comparison
from blockexpand.records.intervals import Interval, ratio_difference
from blockexpand.records.run import CustomArm, RunRecord
from blockexpand.staging import RECORD_NAME
from blockexpand.training import Arm, load_model, load_shipped

# P = prompts, A = tokens of a prompt, G = a prompt and what was said, V = vocabulary.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShiftRecipe:
    """What is continued greedily: beginnings of test documents."""

    num_prompts: int = 48
    """Of each text."""
    prompt_tokens: int = 32
    new_tokens: int = 32

    def __post_init__(self) -> None:
        """Check the bounds."""
        for name, value in vars(self).items():
            check(value > 0, name, value, "more than 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """Where the base ranks the tokens that a model says greedily."""

    rank_1: Interval
    """Share of tokens that the base would have said too, over prompts."""
    rank_2_3: float
    beyond: float
    num_tokens: int


def token_shifts(
    comparison: Comparison, out: Path, wish: ShiftRecipe, arms: Mapping[str, Callable[..., Arm]]
) -> dict[tuple[str, str], Shift]:
    """By arm and text."""
    recipe = comparison.recipe
    base = cast(Any, load_model(Path(recipe.base), torch.float32))
    texts = {"domain": recipe.data.domain, "general": recipe.data.general or ""}
    prompts = {name: prompts_of(open_corpus(text).rows(recipe.test_split), wish) for name, text in texts.items()}
    found = {}
    for arm in comparison.arms:
        run = out / arm.trials[0].run
        own = read_record(RunRecord, run / RECORD_NAME).settings.arm
        made = arms[own.name](**own.options) if isinstance(own, CustomArm) else None
        model = cast(Any, load_shipped(run, arm=made))
        for name, prompts_PA in prompts.items():
            whole_PG = model.generate(
                input_ids=prompts_PA, attention_mask=torch.ones_like(prompts_PA), max_new_tokens=wish.new_tokens,
                do_sample=False, pad_token_id=base.config.eos_token_id,
            )  # fmt: skip
            found[arm.name, name] = token_shift(base, whole_PG, wish.prompt_tokens, base.config.eos_token_id)
    return found


def prompts_of(rows: TokenRows, wish: ShiftRecipe) -> Tensor:
    """The beginnings of the first test documents that are long enough, int64 [P, A]."""
    found: dict[int, np.ndarray] = {}
    numbers = np.arange(rows.num_rows)
    for number, sizes, documents in zip(numbers, rows.lengths(numbers), rows.documents(numbers), strict=True):
        at = 0
        for size, document in zip(sizes, documents, strict=True):
            if size > wish.prompt_tokens and document not in found and len(found) < wish.num_prompts:
                found[document] = rows.tokens_NT(np.array([number]))[0, at : at + wish.prompt_tokens]
            at += size
    if not found:
        raise ComparisonError(f"no test document is longer than {wish.prompt_tokens} tokens; set prompt_tokens lower")
    return torch.from_numpy(np.stack(list(found.values())))


@torch.no_grad()
def token_shift(base: Any, whole_PG: Tensor, num_prompt: int, eos: int) -> Shift:
    """The ranks that the base gives the tokens which a model said.

    Args:
        base: The base.
        whole_PG: Prompts of `num_prompt` tokens and what the model said greedily, filled up with `eos`.
        num_prompt: Where its own words begin.
        eos: The token that ends a text; of several in a row the first one counts.
    """
    said_PG = whole_PG[:, num_prompt:]
    logits_PGV = base(input_ids=whole_PG, use_cache=False).logits[:, num_prompt - 1 : -1].float()
    ranks_PG = (logits_PGV > logits_PGV.gather(-1, said_PG[..., None])).sum(-1) + 1
    counts_PG = (said_PG == eos).cumsum(-1) - (said_PG == eos).long() == 0  # no end before this place
    first_P = ((ranks_PG == 1) & counts_PG).sum(-1).numpy().astype(float)
    near = int(((ranks_PG > 1) & (ranks_PG <= 3) & counts_PG).sum())
    all_P = counts_PG.sum(-1).numpy().astype(float)
    rank_1 = ratio_difference(first_P, np.zeros_like(first_P), all_P)
    share = near / float(all_P.sum())
    beyond = 1.0 - rank_1.difference - share
    return Shift(rank_1=rank_1, rank_2_3=share, beyond=beyond, num_tokens=int(all_P.sum()))
