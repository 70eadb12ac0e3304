"""Texts and chats into tokens: the tokenizer of a model folder, loaded, checked and asked in one way.

Plain text becomes what the tokenizer begins a text with (a begin token, for some), the text's tokens, and the end
token; a chat becomes what the chat template renders. Beside each token stands whether it is trained: every token of
plain text but the first, the end included; of a chat the assistant's turns and the template's close of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from tokenizers import Tokenizer

from blockexpand.checkpoint import tokenizer_file
from blockexpand.corpus.chats import Message, answer_spans
from blockexpand.digests import digest_file
from blockexpand.errors import CorpusError
from blockexpand.records import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A = tokens of one document.


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One document as tokens."""

    tokens_A: np.ndarray
    trained_A: np.ndarray
    """bool: whether the loss counts the prediction of this token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ends:
    """The tokens that begin and end a document."""

    bos: int | None
    """The tokenizer's begin token, whether it puts it before a text or not."""
    eos: int
    begin: tuple[int, ...]
    """What the tokenizer itself puts before a text: the begin token, or nothing."""


def ends_of(tokenizer: PreTrainedTokenizerBase) -> Ends:
    """The tokens that begin and end a document.

    Raises:
        CorpusError: there is no end token, so documents could not be told apart.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise CorpusError(f"the tokenizer {tokenizer.name_or_path} has eos_token_id {eos!r}; expected one token")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare, whole = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
    at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
    return Ends(bos=bos if isinstance(bos, int) else None, eos=eos, begin=tuple(whole[:at]))


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model folder; nothing is fetched and no code of the folder runs.

    Raises:
        CheckpointError: there is no such model, or it has no fast tokenizer.
        CorpusError: it cannot be read.
    """
    folder = tokenizer_file(folder).parent
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what a damaged tokenizer.json raises is the library's business
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorpusError(f"the tokenizer in {folder} cannot be loaded: {why}") from None
    return cast("PreTrainedTokenizerBase", tokenizer)


def tokenizer_digest(folder: str | Path) -> str:
    """What a dataset and a model compare to know that they speak the same tokens."""
    return digest_file(tokenizer_file(folder))


def embeddings_of(folder: str | Path) -> int | None:
    """How many tokens the model in a folder has embeddings for; None where there is no model beside the tokenizer."""
    path = tokenizer_file(folder).with_name("config.json")
    config = read_json(path) if path.is_file() else {}
    size = config.get("vocab_size", (config.get("text_config") or {}).get("vocab_size"))
    return size if isinstance(size, int) else None


class Encoder:
    """Encodes batches of texts or chats; several at once in the tokenizer's own threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, all_turns: bool = False) -> None:
        """Keep the tokenizer; reads nothing. With `all_turns` every token of a chat is trained."""
        self._tokenizer, self._all_turns = tokenizer, all_turns
        self._ends = ends_of(tokenizer)
        self._special = tuple(tokenizer.all_special_tokens)
        self._text, self._chat = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
        # A text that mentions <|end|> must not end the document: what is text stays text.
        self._text.encode_special_tokens = True
        for backend in (self._text, self._chat):  # it may say how long a model's input is: documents are not cut by it
            backend.no_truncation()
            backend.no_padding()

    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """The texts' tokens, in order."""
        begin, end = list(self._ends.begin), [self._ends.eos]
        found = []
        for encoding in self._text.encode_batch_fast(list(texts), add_special_tokens=False):
            tokens_A = np.array(begin + encoding.ids + end, dtype=np.int64)
            trained_A = np.ones(len(tokens_A), dtype=bool)
            trained_A[0] = False  # nothing stands before it to predict it from
            found.append(Encoded(tokens_A=tokens_A, trained_A=trained_A))
        return found

    def encode_chats(self, chats: Sequence[tuple[str, Sequence[Message]]]) -> list[Encoded | CorpusError]:
        """The tokens of (name, turns) pairs, in order; or what is wrong with one."""
        rendered: list[tuple[str, list[tuple[int, int]]] | CorpusError] = []
        for name, messages in chats:
            try:
                rendered.append(self._render(name, messages))
            except CorpusError as error:
                rendered.append(error)
        texts = [one[0] for one in rendered if not isinstance(one, CorpusError)]
        encodings = iter(self._chat.encode_batch(texts, add_special_tokens=False))
        found: list[Encoded | CorpusError] = []
        for (name, _), one in zip(chats, rendered, strict=True):
            if isinstance(one, CorpusError):
                found.append(one)
                continue
            encoding = next(encodings)
            starts_A = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
            trained_A = np.zeros(len(starts_A), dtype=bool)
            for begin, end in one[1]:
                trained_A |= (starts_A >= begin) & (starts_A < end)
            if not trained_A[1:].any():
                found.append(CorpusError(f"{name}: the chat template renders its assistant turns as no token at all"))
                continue
            trained_A |= self._all_turns
            trained_A[0] = False
            found.append(Encoded(tokens_A=np.array(encoding.ids, dtype=np.int64), trained_A=trained_A))
        return found

    def _render(self, name: str, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        for token in self._special:
            if any(token in message["content"] for message in messages):
                raise CorpusError(
                    f"{name} contains the special token {token!r} as text, which would be taken for a turn's border; "
                    "remove it from the chat, or the chat from the file"
                )
        return answer_spans(self._tokenizer, messages, name)
