"""What is done to documents one by one, away from all others: cleaning, fingerprints, tokens.

In: a `Job` (settings) and batches of documents. Out: `Look`s (what a document looks like) and `Tokens`. Pure: the
result depends on the batch alone, so it does not matter which process does it, or how many there are. As a program
(`main`) it takes pickled tasks from standard input, and ends when that is closed: no orphans after a kill.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from blockexpand.corpus.cleaning import Cleaner, CleanRecipe, Drop
from blockexpand.corpus.decontamination import EvaluationTexts
from blockexpand.corpus.documents import Document, key_of, position_of, words_of
from blockexpand.corpus.fingerprints import WordHashes, band_keys, gram_hashes, signature
from blockexpand.corpus.tokenizer import Encoder, Ends, PlainEncoder, load_tokenizer
from blockexpand.errors import CorpusError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Settings of the work; sent to each process once."""

    tokenizer_json: str
    ends: Ends
    chat_folder: str | None
    """Where the tokenizer with the chat template is, for conversations."""
    cleaning: tuple[CleanRecipe | None, ...]
    """For each source."""
    min_chars: int
    place_by: str | None
    """How a document's split is chosen: `shingle`, `content`, or None where there is one split."""
    banding: tuple[int, int] | None
    """Bands and hashes a band; None when near copies are kept."""
    run_words: int
    evaluation: EvaluationTexts | None
    all_turns: bool = False
    """Whether every turn of a conversation is trained, and not the assistant's alone."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a document looks like."""

    key: bytes
    """What exact copies share."""
    drop: Drop | None = None
    """Why it is dropped at sight; the rest is not looked at then."""
    position: float = 0.0
    bands_B: np.ndarray | None = None
    signature_H: np.ndarray | None = None
    quote: str | None = None
    """What it has in common with an evaluation text."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The tokens of a batch of documents."""

    tokens: np.ndarray
    """Of all documents behind one another, uint32."""
    lengths: np.ndarray
    """Tokens of each document, int64; 0 for what could not be encoded."""
    trained: np.ndarray | None
    """bool beside each token; None = every one."""
    bad: dict[int, str]
    """Why a document could not be encoded, by its number in the batch."""


class Worker:
    """The work itself."""

    def __init__(self, job: Job) -> None:
        """Build the tokenizer at its first use."""
        self._job = job
        self._cleaners = [None if recipe is None else Cleaner(recipe) for recipe in job.cleaning]
        self._hashes = WordHashes()
        self._plain: PlainEncoder | None = None
        self._chats: Encoder | None = None

    def look(self, source: int, batch: Sequence[Document]) -> list[Look]:
        """What each document of a batch of one source looks like."""
        return [self._look(document.text, self._cleaners[source]) for document in batch]

    def _look(self, text: str, cleaner: Cleaner | None) -> Look:
        job = self._job
        words = words_of(text)
        key = key_of(words)
        chars = len(text.strip())
        if chars < job.min_chars:
            return Look(key=key, drop=Drop(rule="min_chars", figure=f"{chars} characters"))
        drop = cleaner.verdict(text) if cleaner is not None else None
        if drop is not None:
            return Look(key=key, drop=drop)
        bands_B = signature_H = quote = None
        if job.banding is not None or job.evaluation is not None:
            words_W = self._hashes.of(words)
            if job.banding is not None:
                signature_H = signature(gram_hashes(words_W, job.run_words))
                bands_B = band_keys(signature_H, job.banding)
            if job.evaluation is not None:
                quote = job.evaluation.quote(words, words_W)
        position = 0.0 if job.place_by is None else position_of(words, by_content=job.place_by == "content")
        return Look(key=key, position=position, bands_B=bands_B, signature_H=signature_H, quote=quote)

    def encode(self, batch: Sequence[Document]) -> Tokens:
        """The tokens of a batch."""
        if self._job.chat_folder is not None:
            return self._encode_chats(batch)
        if self._plain is None:
            self._plain = PlainEncoder(self._job.tokenizer_json, self._job.ends)
        tokens, lengths = self._plain.encode([document.text for document in batch])
        return Tokens(tokens=tokens, lengths=lengths, trained=None, bad={})

    def _encode_chats(self, batch: Sequence[Document]) -> Tokens:
        if self._chats is None:
            assert self._job.chat_folder is not None
            self._chats = Encoder(load_tokenizer(self._job.chat_folder), all_turns=self._job.all_turns)
        empty = np.zeros(0, dtype=np.uint32)
        tokens, trained, bad = [empty], [empty.astype(bool)], {}
        lengths = np.zeros(len(batch), dtype=np.int64)
        for number, document in enumerate(batch):
            try:
                (one,) = self._chats.encode([document])
            except CorpusError as error:
                bad[number] = str(error)
                continue
            tokens.append(one.tokens_A.astype(np.uint32))
            trained.append(one.trained_A)
            lengths[number] = len(one.tokens_A)
        return Tokens(tokens=np.concatenate(tokens), lengths=lengths, trained=np.concatenate(trained), bad=bad)


def main() -> None:
    """Serve tasks (method name, arguments) until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what to do
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # nothing that prints may come between the replies
    tasks = sys.stdin.buffer
    worker = Worker(pickle.load(tasks))
    while True:
        try:
            name, arguments = pickle.load(tasks)
        except EOFError:
            return
        result: Any = worker.look(*arguments) if name == "look" else worker.encode(*arguments)
        try:
            pickle.dump(result, replies, protocol=pickle.HIGHEST_PROTOCOL)
            replies.flush()
        except BrokenPipeError:  # nobody waits for it any more
            return
