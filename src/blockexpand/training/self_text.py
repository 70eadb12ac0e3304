"""General text for those who have none: written by the base itself, before it learns anything.

In: a run whose general text is `self`. Out: prepared corpora in the run folder, one a kind: prose, from the tokenizer's
begin token; and chats, where the tokenizer has a chat template: the base's own questions, its own answers. Of each as
many rows to rehearse as the run will draw (up to a limit), some to steer by, and documents enough to test the budget.
What a model writes at temperature 1 is a sample of what it knows; rehearsing it is the oldest remedy against forgetting
(Robins 1995, pseudo-rehearsal). It can hold on only to what it can say. Refused: a tokenizer with neither.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blockexpand.checkpoint import open_checkpoint
from blockexpand.checkpoint.passes import digest_tensors
from blockexpand.corpus import open_corpus
from blockexpand.corpus.chats import render, render_prompt, tokens_of
from blockexpand.corpus.rows import Shape, write_documents
from blockexpand.corpus.tokenizer import Encoded, ends_of, load_tokenizer, tokenizer_digest
from blockexpand.digests import digest_json
from blockexpand.errors import TrainingError
from blockexpand.live.generation import ends_of_model, generate
from blockexpand.progress import bar
from blockexpand.records import read_record, write_record
from blockexpand.records.corpus import CorpusRecord, SplitCounts
from blockexpand.records.run import SELF, TrainSettings
from blockexpand.staging import RECORD_NAME, staged_folder
from blockexpand.training.arms import load_model
from blockexpand.training.budget import LEAST_DOCUMENTS
from blockexpand.training.data import CHATS, PROSE, self_folder

_MOST_ROWS = 4096
"""Of 1024 tokens, four million tokens: more than a run can replay in the time it takes to write them."""
_SAMPLES_AT_ONCE = 256
_MOST_EMPTY = 20
_SEPARATORS = ("<|endoftext|>", "<s>", "<bos>", "<|begin_of_text|>", "</s>")
"""What tells documents apart in training, where the begin token of a chat model is a turn's border."""
_MARK = "blockexpand"

Write = Callable[[int, int], list[Encoded]]
"""Documents, given how many and a seed."""


def write_self_text(settings: TrainSettings, device: torch.device) -> None:
    """Write the general text of a run that asks for `self`, unless what is there is of this very model and settings.

    Raises:
        TrainingError: there is no token from which a text could begin.
    """
    if settings.general != SELF:
        return
    row_tokens = open_corpus(settings.data.domain).record.row_tokens
    tokenizer = load_tokenizer(settings.model)
    tensors = digest_tensors(open_checkpoint(Path(settings.model)))
    wish = {
        "model": {name: digest.digest for name, digest in tensors.items()},
        "tokenizer": tokenizer_digest(settings.model),
        "row_tokens": row_tokens,
        "rows": _rows_wanted(settings, row_tokens),
        "seed": settings.seed,
    }
    kinds = _kinds(tokenizer, row_tokens, settings.model)
    digest = digest_json(wish)
    missing = [kind for kind in kinds if not _is_there(self_folder(settings, kind), digest)]
    if not missing:
        return
    model = load_model(Path(settings.model), torch.float32)
    nn.Module.to(model, device)
    for kind in missing:
        writer = Writer(model, tokenizer, row_tokens)
        write = writer.chats if kind == CHATS else writer.prose(cast(int, kinds[PROSE]))
        _write_corpus(self_folder(settings, kind), write, (settings, digest, kind), tokenizer)


def _kinds(tokenizer: PreTrainedTokenizerBase, row_tokens: int, folder: str) -> dict[str, int | None]:
    """What the base can be asked for, and the token that its prose begins with."""
    begin, kinds = ends_of(tokenizer).bos, cast(dict[str, int | None], {})
    if tokenizer.chat_template:
        prompt = render_prompt(tokenizer, [{"role": "user", "content": _MARK}])
        turns = [{"role": role, "content": _MARK} for role in ("user", "assistant")]
        chat = tokens_of(tokenizer, render(tokenizer, turns, prompt=False))
        if len(prompt) <= row_tokens // 2:  # or the template alone leaves no room in a row
            kinds[CHATS] = None
        if chat.count(begin) > 1:  # a turn's border, after which the model writes no prose
            known = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
            free = [known[name] for name in _SEPARATORS if name in known and known[name] not in chat]
            begin = free[0] if free else None
    if begin is not None:
        kinds[PROSE] = begin
    if not kinds:
        raise TrainingError(
            f"the tokenizer in {folder} has neither a begin token, from which a text could be sampled, nor a chat "
            "template; expected one of them; give general text instead of `self`"
        )
    return dict(sorted(kinds.items(), reverse=True))


def _is_there(folder: Path, digest: str) -> bool:
    path = folder / RECORD_NAME
    return path.is_file() and read_record(CorpusRecord, path).recipe_digest == digest


def _rows_wanted(settings: TrainSettings, row_tokens: int) -> dict[str, int]:
    """Full rows of each split."""
    wanted = settings.num_steps(row_tokens) * settings.num_general_rows
    return {
        settings.data.general_split: max(1, min(wanted, _MOST_ROWS)),
        settings.data.validation_split: max(1, settings.data.validation_rows),
    }


def _write_corpus(
    target: Path, write: Write, what: tuple[TrainSettings, str, str], tokenizer: PreTrainedTokenizerBase
) -> None:
    settings, digest, kind = what
    row_tokens = open_corpus(settings.data.domain).record.row_tokens
    budget = settings.retention.forgetting_budget is not None
    splits: dict[str, SplitCounts] = {}
    seeds = itertools.count(settings.seed << 16)
    wanted = _rows_wanted(settings, row_tokens)
    with (
        staged_folder(target, overwrite=target.is_dir()) as folder,
        bar(f"{kind} of the base", sum(wanted.values()) * row_tokens, "tokens") as live,
    ):
        for name, num_rows in wanted.items():
            documents: list[Encoded] = []
            # What tests the budget stands behind what steers, and must not be the same documents.
            more = 4 * LEAST_DOCUMENTS if budget and name == settings.data.validation_split else 0
            behind: list[Encoded] = []
            num_empty = 0
            while sum(len(one.tokens_A) for one in documents) < num_rows * row_tokens or len(behind) < more:
                made = write(_SAMPLES_AT_ONCE if num_rows > 32 else 32, next(seeds))
                num_empty = 0 if made else num_empty + 1
                if num_empty == _MOST_EMPTY:
                    raise TrainingError(
                        f"{settings.model} wrote no {kind} in {num_empty} attempts; give general text instead of `self`"
                    )
                full = sum(len(one.tokens_A) for one in documents) >= num_rows * row_tokens
                (behind if full else documents).extend(made)
                live.advance(sum(len(one.tokens_A) for one in made))
            documents += behind[:more]
            texts = tokenizer.batch_decode([d.tokens_A.tolist() for d in documents], skip_special_tokens=True)
            splits[name] = write_documents(
                folder / f"{name}.arrow",
                documents,
                shape=Shape(row_tokens=row_tokens, vocabulary_size=len(tokenizer), pad=ends_of(tokenizer).eos),
                num_bytes=sum(len(str(text).encode()) for text in texts),
            )
        record = CorpusRecord(
            row_tokens=row_tokens,
            tokenizer_digest=tokenizer_digest(settings.model),
            vocabulary_size=len(tokenizer),
            recipe_digest=digest,
            conversations=kind == CHATS,
            sources=(),
            splits=splits,
        )
        write_record(folder / RECORD_NAME, record)


@dataclasses.dataclass(frozen=True)
class Writer:
    """A base that writes documents of at most a row."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    row_tokens: int

    def prose(self, begin: int) -> Write:
        """What writes texts that begin with a token, and end with the end token where they end."""
        ends = [ends_of(self.tokenizer).eos]

        def write(number: int, seed: int) -> list[Encoded]:
            texts = generate(self.model, [[begin]] * number, num_new=self.row_tokens - 1, ends=ends, seed=seed)
            return [_encoded([begin], text) for text in texts]

        return write

    def chats(self, number: int, seed: int) -> list[Encoded]:
        """Chats of a question and its answer, of which the answer counts; those without either are left out."""
        before, _, _ = render(self.tokenizer, [{"role": "user", "content": _MARK}], prompt=False).partition(_MARK)
        opening = tokens_of(self.tokenizer, before)
        ends = ends_of_model(self.model, self.tokenizer)
        room = max(1, self.row_tokens // 2 - len(opening))
        asked = generate(self.model, [opening] * number, num_new=room, ends=ends, seed=seed)
        questions = [str(text).strip() for text in self.tokenizer.batch_decode(asked, skip_special_tokens=True)]
        prompts = [render_prompt(self.tokenizer, [{"role": "user", "content": text}]) for text in questions if text]
        prompts = [prompt for prompt in prompts if len(prompt) < self.row_tokens - 8]
        longest = max(map(len, prompts), default=0)
        answers = generate(self.model, prompts, num_new=self.row_tokens - longest, ends=ends, seed=seed + (1 << 40))
        return [_encoded(prompt, made) for prompt, made in zip(prompts, answers, strict=True)]


def _encoded(given: list[int], made: list[int]) -> Encoded:
    """What was given and what the base added, of which only the latter counts."""
    trained_A = np.arange(len(given) + len(made)) >= len(given)
    return Encoded(tokens_A=np.array([*given, *made], dtype=np.int64), trained_A=trained_A)
