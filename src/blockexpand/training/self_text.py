"""General text for those who have none: written by the base itself, before it learns anything.

In: a run whose general text is `self`. Out: prepared corpora in the run folder, one a kind: prose, from the tokenizer's
begin token; and chats, where the tokenizer has a chat template: the base's own questions, its own answers. Of each
some to steer by, documents enough to test the budget, and rows to rehearse, none of them more than a few times. They
are kept among Hugging Face's assets under the base's digest: another run of the same base writes only what is missing.
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
from huggingface_hub import cached_assets_path
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
from blockexpand.live.device import training_dtype
from blockexpand.live.generation import ends_of_model, generate
from blockexpand.progress import bar
from blockexpand.records import read_record, write_record
from blockexpand.records.corpus import CorpusRecord, SplitCounts
from blockexpand.records.run import SELF, TrainSettings
from blockexpand.staging import RECORD_NAME, staged_file, staged_folder
from blockexpand.training.arms import load_model
from blockexpand.training.data import CHATS, PROSE, self_folder

_MOST_EPOCHS = 4
"""How often a row is rehearsed: repeated text is nearly as good as new up to here (arXiv 2305.16264)."""
_MOST_ROWS = 4096
"""Of 1024 tokens, four million tokens: more than a run can replay in the time it takes to write them."""
_SHARE_OF_ROWS, _LEAST_TESTED, _MOST_TESTED = 0.1, 60, 400
"""Documents that test the budget, over the rows of the run; what they cost is in proportion to it."""
_DOCUMENTS_AT_ONCE = 32
_MOST_EMPTY = 20
_SEPARATORS = ("<|endoftext|>", "<s>", "<bos>", "<|begin_of_text|>", "</s>")
"""What tells documents apart in training, where the begin token of a chat model is a turn's border."""
_MARK = "blockexpand"

Write = Callable[[int, int, int, Callable[[float], None]], list[Encoded]]
"""Documents, given how many, their own tokens at most, a seed, and what is told how many are done."""


def write_self_text(settings: TrainSettings, device: torch.device) -> None:
    """Write the general text of a run that asks for `self`, unless what is there is of this very model and settings.

    Raises:
        TrainingError: there is no token from which a text could begin, or what is written cannot be kept.
    """
    if settings.general != SELF:
        return
    row_tokens = open_corpus(settings.data.domain).record.row_tokens
    tokenizer = load_tokenizer(settings.model)
    dtype = training_dtype(settings.precision, Path(settings.model), device)
    tensors = digest_tensors(open_checkpoint(Path(settings.model)))
    base = {
        "model": {name: digest.digest for name, digest in tensors.items()},
        "tokenizer": tokenizer_digest(settings.model),
        "row_tokens": row_tokens,
        "seed": settings.seed,
        "dtype": str(dtype),
    }
    kinds = _kinds(tokenizer, row_tokens, settings.model)
    needs = _needs(settings, row_tokens, len(kinds))
    digest = digest_json([base, {split: dataclasses.asdict(need) for split, need in needs.items()}])
    missing = [kind for kind in kinds if not _is_there(self_folder(settings, kind), digest)]
    if not missing:
        return
    model = load_model(Path(settings.model), dtype)
    nn.Module.to(model, device)
    writer = Writer(model, tokenizer, row_tokens)
    for kind in missing:
        write = writer.chats if kind == CHATS else writer.prose(cast(int, kinds[PROSE]))
        documents = {}
        for split, need in needs.items():
            kept = _assets(digest_json(base)) / f"{kind.removeprefix('own ')}-{need.longest}"
            documents[split] = _documents(
                f"{kind}, {split}", _Written(kept, write, settings.seed), need, settings.model
            )
        _write_corpus(
            self_folder(settings, kind),
            documents,
            row_tokens=row_tokens,
            tokenizer=tokenizer,
            tokenizer_digest=base["tokenizer"],
            recipe_digest=digest,
            conversations=kind == CHATS,
        )


def _kinds(tokenizer: PreTrainedTokenizerBase, row_tokens: int, folder: str) -> dict[str, int | None]:
    """What the base can be asked for, and the token that its prose begins with."""
    begin, kinds = ends_of(tokenizer).bos, cast(dict[str, int | None], {})
    if tokenizer.chat_template:
        prompt = render_prompt(tokenizer, [{"role": "user", "content": _MARK}])
        turns = [{"role": role, "content": _MARK} for role in ("user", "assistant")]
        chat = tokens_of(tokenizer, render(tokenizer, turns, prompt=False))
        if len(prompt) <= row_tokens // 2:  # or the template alone leaves no room in a row
            kinds[CHATS] = None
        if begin is not None and chat.count(begin) > 1:  # a turn's border, after which the model writes no prose
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Need:
    """What a run takes of a kind of text for one purpose."""

    tokens: int
    documents: int
    """Besides."""
    longest: int
    """Tokens of the base's own in a document. What tests the budget may be short: a bound stands on documents."""

    def missing(self, made: list[Encoded]) -> int:
        """How many documents more it takes, by the mean length of those there are; 0: enough."""
        num_tokens = sum(len(one.tokens_A) for one in made)
        mean = max(1.0, num_tokens / len(made)) if made else float(self.longest)
        if num_tokens >= self.tokens + self.documents * mean:
            return 0
        return max(1, round(self.tokens / mean + self.documents - len(made)))


def _needs(settings: TrainSettings, row_tokens: int, num_kinds: int) -> dict[str, _Need]:
    """By split: what is rehearsed, no row more than a few times; what steers, and what tests the budget."""
    num_steps = settings.num_steps(row_tokens)
    rows = -(-num_steps * settings.num_general_rows // (_MOST_EPOCHS * num_kinds))
    tested = max(_LEAST_TESTED, min(_MOST_TESTED, round(_SHARE_OF_ROWS * num_steps * settings.rows_per_step)))
    return {
        settings.data.general_split: _Need(
            tokens=max(1, min(rows, _MOST_ROWS)) * row_tokens, documents=0, longest=max(1, row_tokens // 2)
        ),
        settings.data.validation_split: _Need(
            tokens=max(1, settings.data.validation_rows) * row_tokens,
            documents=tested if settings.retention.forgetting_budget is not None else 0,
            longest=max(1, row_tokens // 4),
        ),
    }


class _Written:
    """What a base has written of one kind, in parts of so many documents; a part depends on its number alone."""

    def __init__(self, folder: Path, write: Write, seed: int) -> None:
        self.folder, self.write, self.seed = folder, write, seed

    def is_there(self, number: int) -> bool:
        return self._path(number).is_file()

    def part(self, number: int, longest: int, done: Callable[[float], None]) -> list[Encoded]:
        """The documents of a part, written if they are not there."""
        path = self._path(number)
        if not path.is_file():
            documents = self.write(_DOCUMENTS_AT_ONCE, longest, (self.seed << 16) + number, done)
            lengths = np.array([len(one.tokens_A) for one in documents], dtype=np.int64)
            tokens, trained = (np.concatenate([np.empty(0, kind), *parts]) for kind, parts in _columns(documents))
            with staged_file(path) as stream:
                np.savez(stream, lengths=lengths, tokens=tokens, trained=trained)
        with np.load(path) as held:
            ends = np.cumsum(held["lengths"])[:-1]
            split = (np.split(held[name], ends) for name in ("tokens", "trained"))
            both = zip(*split, strict=True) if len(held["lengths"]) else ()
            return [Encoded(tokens_A=tokens_A, trained_A=trained_A) for tokens_A, trained_A in both]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05}.npz"


def _columns(documents: list[Encoded]) -> tuple[tuple[type, list[np.ndarray]], tuple[type, list[np.ndarray]]]:
    return (np.int64, [one.tokens_A for one in documents]), (np.bool_, [one.trained_A for one in documents])


def _assets(digest: str) -> Path:
    """Where what a base wrote is kept, among the assets of Hugging Face's libraries (HF_HOME)."""
    name = digest.rpartition(":")[2][:32]
    try:
        return cached_assets_path("blockexpand", "self-text", name)
    except OSError as error:
        raise TrainingError(
            f"{error}: what the base writes itself is kept there; expected a folder that can be written to; set "
            "HF_HOME to one, or give general text"
        ) from error


def _documents(title: str, written: _Written, need: _Need, model: str) -> list[Encoded]:
    """As many documents as a run takes."""
    documents: list[Encoded] = []
    num_empty = 0
    with bar(title, _DOCUMENTS_AT_ONCE * -(-need.missing([]) // _DOCUMENTS_AT_ONCE), "texts") as live:
        for number in itertools.count():
            made = written.part(number, need.longest, live.advance)
            num_empty = 0 if made else num_empty + 1
            if num_empty == _MOST_EMPTY:
                raise TrainingError(f"{model} wrote nothing in {num_empty} attempts ({title}); give general text")
            documents += made
            missing = need.missing(documents)
            if not missing:
                return documents
            to_write = range(number + 1, number + 1 + -(-missing // _DOCUMENTS_AT_ONCE))
            more = sum(not written.is_there(part) for part in to_write)
            live.advance(0, total=(number + 1 + more) * _DOCUMENTS_AT_ONCE)
    raise AssertionError("counted to the end")


def _write_corpus(
    target: Path,
    documents: dict[str, list[Encoded]],
    *,
    row_tokens: int,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_digest: str,
    recipe_digest: str,
    conversations: bool,
) -> None:
    splits: dict[str, SplitCounts] = {}
    with staged_folder(target, overwrite=target.is_dir()) as folder:
        for name, chosen in documents.items():
            texts = tokenizer.batch_decode([d.tokens_A.tolist() for d in chosen], skip_special_tokens=True)
            splits[name] = write_documents(
                folder / f"{name}.arrow",
                chosen,
                shape=Shape(row_tokens=row_tokens, vocabulary_size=len(tokenizer), pad=ends_of(tokenizer).eos),
                num_bytes=sum(len(str(text).encode()) for text in texts),
            )
        record = CorpusRecord(
            row_tokens=row_tokens,
            tokenizer_digest=tokenizer_digest,
            vocabulary_size=len(tokenizer),
            recipe_digest=recipe_digest,
            conversations=conversations,
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

        def write(number: int, longest: int, seed: int, done: Callable[[float], None]) -> list[Encoded]:
            num_new = min(longest, self.row_tokens - 1)
            texts = generate(self.model, [[begin]] * number, num_new=num_new, ends=ends, seed=seed, done=done)
            return [_encoded([begin], text) for text in texts]

        return write

    def chats(self, number: int, longest: int, seed: int, done: Callable[[float], None]) -> list[Encoded]:
        """Chats of a question and its answer, of which the answer counts; those without either are left out."""
        before, _, _ = render(self.tokenizer, [{"role": "user", "content": _MARK}], prompt=False).partition(_MARK)
        opening = tokens_of(self.tokenizer, before)
        ends = ends_of_model(self.model, self.tokenizer)

        def half(part: float) -> None:
            done(part / 2)

        room = max(1, min(longest // 4, self.row_tokens // 2 - len(opening)))
        asked = generate(self.model, [opening] * number, num_new=room, ends=ends, seed=seed, done=half)
        questions = [str(text).strip() for text in self.tokenizer.batch_decode(asked, skip_special_tokens=True)]
        prompts = [render_prompt(self.tokenizer, [{"role": "user", "content": text}]) for text in questions if text]
        prompts = [prompt for prompt in prompts if len(prompt) < self.row_tokens - 8]
        half(number - len(prompts))
        num_new = min(self.row_tokens - max(map(len, prompts), default=0), longest)
        answers = generate(self.model, prompts, num_new=num_new, ends=ends, seed=seed + (1 << 40), done=half)
        return [_encoded(prompt, made) for prompt, made in zip(prompts, answers, strict=True)]


def _encoded(given: list[int], made: list[int]) -> Encoded:
    """What was given and what the base added, of which only the latter counts."""
    trained_A = np.arange(len(given) + len(made)) >= len(given)
    return Encoded(tokens_A=np.array([*given, *made], dtype=np.int64), trained_A=trained_A)
