"""Looking closer at each arm's chosen run: what it says, how its words rank under the base, what each new block does.

In: a finished comparison. Out: `examination.json`. Each run is examined once; what was seen lies in its folder.
Refused: texts whose test documents are shorter than the prompts asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from blockexpand.corpus.rows import Corpus, TokenRows, batches, open_corpus
from blockexpand.corpus.tokenizer import ends_of, load_tokenizer
from blockexpand.errors import ComparisonError
from blockexpand.live.forward import RowBatch, cross_entropies
from blockexpand.live.generation import generate
from blockexpand.live.parts import blocks_of
from blockexpand.records import read_record, write_record
from blockexpand.records.comparison import (
    EXAMINATION_NAME,
    BlockEffect,
    Comparison,
    Examination,
    ExamineSettings,
    Seen,
    Shift,
)
from blockexpand.records.expansion import read_expansion
from blockexpand.records.intervals import ratio_difference
from blockexpand.records.plan import NewBlock
from blockexpand.records.run import CustomArm, RunRecord
from blockexpand.training import Arm, load_shipped
from blockexpand.training.arms import load_model

# P = prompts, A = tokens of a prompt, G = a prompt and what was said, B, T, D, R as in numerics.

_SEEN_NAME = "examined.json"
_ROWS_PER_PASS = 16


def examine(comparison: Comparison, out: Path, arms_given: Mapping[str, Callable[..., Arm]]) -> Examination:
    """Look at each arm's chosen run of the first seed, and write what was seen into the comparison's folder.

    Raises:
        ComparisonError: a text has no test documents as long as the prompts.
    """
    recipe = comparison.recipe
    assert recipe.examine is not None, "the recipe asks for no examination"
    texts = {"domain": open_corpus(recipe.data.domain), "general": open_corpus(recipe.data.general or "")}
    examiner = _Examiner(Path(recipe.base), texts, recipe.test_split, recipe.examine)
    base = examiner.seen(out / "base-examined.json", lambda: examiner.base, None)
    arms, runs, arm_recipes = {}, {}, {one.name: one for one in recipe.arms}
    for arm in comparison.arms:
        run = out / arm.trials[0].run
        record = read_record(RunRecord, run / "blockexpand.json")
        made = Path(record.settings.out)
        place = (made if made.is_dir() else run) / _SEEN_NAME
        new = None
        if arm_recipes[arm.name].plan is not None:
            new = read_expansion(run / "model").plan.new_blocks
        arms[arm.name] = examiner.seen(place, _loader(run, record, arms_given), new or ())
        runs[arm.name] = arm.trials[0].run
    found = Examination(settings=recipe.examine, prompts=examiner.shown_prompts(), base=base, arms=arms, runs=runs)
    write_record(out / EXAMINATION_NAME, found)
    return found


def _loader(run: Path, record: RunRecord, arms: Mapping[str, Callable[..., Arm]]) -> Callable[[], PreTrainedModel]:
    own = record.settings.arm
    arm = arms[own.name](**own.options) if isinstance(own, CustomArm) else None
    return lambda: load_shipped(run, arm=arm)


class _Examiner:
    """The base, the prompts and the rows that every model is looked at with."""

    def __init__(self, base: Path, texts: Mapping[str, Corpus], split: str, settings: ExamineSettings) -> None:
        self._folder, self._settings = base, settings
        self._rows = {name: corpus.rows(split) for name, corpus in texts.items()}
        self._corpora = {name: corpus.record.splits[split].digest for name, corpus in texts.items()}
        self._prompts = {name: _prompts_PA(rows, settings, name) for name, rows in self._rows.items()}
        self._tokenizer = load_tokenizer(base)
        self._base: PreTrainedModel | None = None

    @property
    def base(self) -> PreTrainedModel:
        """Loaded when it is first asked for: what is examined already needs none."""
        if self._base is None:
            self._base = load_model(self._folder, torch.float32)
        return self._base

    def shown_prompts(self) -> dict[str, tuple[str, ...]]:
        """The prompts whose continuations are kept, as text."""
        return {name: self._decoded(prompts_PA) for name, prompts_PA in self._prompts.items()}

    def _decoded(self, tokens_PA: Tensor) -> tuple[str, ...]:
        shown = tokens_PA[: self._settings.num_shown]
        return tuple(self._tokenizer.batch_decode(shown, skip_special_tokens=True))

    def seen(self, place: Path, load: Callable[[], PreTrainedModel], new: Sequence[NewBlock] | None) -> Seen:
        """What is seen in a model, or was before; `new` are its new blocks, None says that it is the base."""
        if place.is_file():
            before = read_record(Seen, place)
            if (before.settings, before.corpora) == (self._settings, self._corpora):
                return before
        model = load()
        shifts, said = {}, {}
        for name, prompts_PA in self._prompts.items():
            whole_PG = self._said(model, prompts_PA)
            said[name] = self._decoded(whole_PG[:, prompts_PA.shape[1] :])
            if new is not None:
                shifts[name] = token_shift(self.base, whole_PG, prompts_PA.shape[1], ends_of(self._tokenizer).eos)
        blocks = self._blocks(model, new) if new else ()
        found = Seen(settings=self._settings, corpora=self._corpora, shifts=shifts, blocks=blocks, continuations=said)
        write_record(place, found)
        return found

    def _said(self, model: PreTrainedModel, prompts_PA: Tensor) -> Tensor:
        eos, prompts = ends_of(self._tokenizer).eos, prompts_PA.tolist()
        made = generate(model, prompts, num_new=self._settings.new_tokens, ends=[eos])
        longest = max(map(len, made))
        whole = [prompt + new + [eos] * (longest - len(new)) for prompt, new in zip(prompts, made, strict=True)]
        return torch.tensor(whole, device=prompts_PA.device)

    def _blocks(self, model: PreTrainedModel, new: Sequence[NewBlock]) -> tuple[BlockEffect, ...]:
        if not self._settings.ablation_rows:
            return ()
        batches_of = {n: _first_rows(rows, self._settings.ablation_rows) for n, rows in self._rows.items()}
        stack = blocks_of(model)
        effects: dict[str, tuple[dict[str, float], dict[str, float]]] = {block.id: ({}, {}) for block in new}
        for name, rows in batches_of.items():
            watched = {block.id: Watched(stack[block.position]) for block in new}
            try:
                whole = _loss(model, rows)
                for block_id, one in watched.items():
                    effects[block_id][0][name] = one.moved()
                    one.is_skipped = True
                    effects[block_id][1][name] = _loss(model, rows) - whole
                    one.is_skipped = False
            finally:
                for one in watched.values():
                    one.leave()
        return tuple(
            BlockEffect(id=b.id, position=b.position, moved=effects[b.id][0], missed=effects[b.id][1]) for b in new
        )


class Watched:
    """Stands before a block's forward: measures what it adds, or leaves it out."""

    def __init__(self, block: nn.Module) -> None:
        """Step before the block."""
        self._block, self._forward = block, block.forward
        self._shares_R: list[Tensor] = []
        self.is_skipped = False
        """Whether the block's input is handed on as its output."""
        vars(block)["forward"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output, or its input."""
        before_BTD = args[0] if args else kwargs["hidden_states"]
        output = self._forward(*args, **kwargs)
        after_BTD = output[0] if isinstance(output, tuple) else output
        if self.is_skipped:
            return (before_BTD, *output[1:]) if isinstance(output, tuple) else before_BTD
        sizes_BT = before_BTD.norm(dim=-1)
        self._shares_R.append(((after_BTD - before_BTD).norm(dim=-1) / sizes_BT).flatten())
        return output

    def moved(self) -> float:
        """What it added, as a share of the hidden state's size: the mean over the tokens seen so far."""
        return torch.cat(self._shares_R).mean().item()

    def leave(self) -> None:
        """Give the block its own forward back."""
        vars(self._block)["forward"] = self._forward


def _first_rows(rows: TokenRows, num_rows: int) -> list[RowBatch]:
    device = torch.device("cpu")
    return [
        RowBatch.of(rows.tokens_NT(some), rows.positions_NT(some), rows.trained_NT(some), device)
        for some in batches(min(num_rows, rows.num_rows), _ROWS_PER_PASS)
    ]


def _loss(model: PreTrainedModel, rows: Sequence[RowBatch]) -> float:
    losses_R = torch.cat([cross_entropies(model, batch) for batch in rows])
    return losses_R.double().mean().item()


def _prompts_PA(rows: TokenRows, settings: ExamineSettings, name: str) -> Tensor:
    """The beginnings of the first test documents that are long enough, int64 [P, A]."""
    found: list[np.ndarray] = []
    seen: set[int] = set()
    length = settings.prompt_tokens
    for chosen in batches(rows.num_rows, _ROWS_PER_PASS):
        tokens_NT = rows.tokens_NT(chosen)
        for number, (sizes, documents) in enumerate(zip(rows.lengths(chosen), rows.documents(chosen), strict=True)):
            at = 0
            for size, document in zip(sizes, documents, strict=True):
                if size > length and document not in seen:
                    found.append(tokens_NT[number, at : at + length])
                seen.add(document)
                at += size
        if len(found) >= settings.num_prompts:
            break
    if not found:
        raise ComparisonError(
            f"no test document of the {name} text is longer than {length} tokens; expected some, to be continued; set "
            "examine.prompt_tokens lower"
        )
    return torch.from_numpy(np.stack(found[: settings.num_prompts]))


@torch.no_grad()
def token_shift(base: PreTrainedModel, whole_PG: Tensor, num_prompt: int, eos: int) -> Shift:
    """The ranks that the base gives the tokens which a model said.

    Args:
        base: The base.
        whole_PG: Prompts of `num_prompt` tokens and what the model said greedily, filled up with `eos`.
        num_prompt: Where its own words begin.
        eos: The token that ends a text; of several in a row the first one counts.
    """
    said_PG = whole_PG[:, num_prompt:]
    logits_PGV = base(input_ids=whole_PG, use_cache=False).logits[:, num_prompt - 1 : -1].float()
    own_PG = logits_PGV.gather(-1, said_PG[..., None])
    ranks_PG = (logits_PGV > own_PG).sum(-1) + 1
    ended_PG = (said_PG == eos).cumsum(-1) - (said_PG == eos).long()  # ends before this place
    counts_PG = ended_PG == 0
    first_P = ((ranks_PG == 1) & counts_PG).sum(-1).numpy().astype(float)
    near_P = ((ranks_PG > 1) & (ranks_PG <= 3) & counts_PG).sum(-1).numpy().astype(float)
    all_P = counts_PG.sum(-1).numpy().astype(float)
    total = all_P.sum()
    rank_1, rank_2_3 = float(first_P.sum() / total), float(near_P.sum() / total)
    return Shift(
        rank_1=rank_1,
        rank_2_3=rank_2_3,
        beyond=1.0 - rank_1 - rank_2_3,
        rank_1_interval=ratio_difference(first_P, np.zeros_like(first_P), all_P),
        num_tokens=int(total),
    )
