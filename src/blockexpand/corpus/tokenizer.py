"""Documents into tokens: the tokenizer of a model folder, plain text and conversations.

Plain text becomes BOS (where the tokenizer has one), the text's tokens, EOS; a conversation becomes what
the chat template renders. Beside each token stands whether it is trained: every token of plain text but
the first, EOS included; of a conversation the assistant's turns and the template's close of each.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from tokenizers import Tokenizer

from blockexpand.checkpoint import tokenizer_file
from blockexpand.corpus.chats import answer_spans
from blockexpand.corpus.documents import Document
from blockexpand.digests import digest_file
from blockexpand.errors import CorpusError

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
    eos: int


def ends_of(tokenizer: PreTrainedTokenizerBase) -> Ends:
    """The tokenizer's begin token, where it has one, and its end token.

    Raises:
        CorpusError: it has no end token, so documents could not be told apart.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise CorpusError(f"the tokenizer {tokenizer.name_or_path} has eos_token_id {eos!r}; expected one token")
    return Ends(bos=bos if isinstance(bos, int) else None, eos=eos)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model folder; nothing is fetched and no code of the folder runs.

    Raises:
        CheckpointError: there is no such model, or it has no fast tokenizer.
        CorpusError: it cannot be read.
    """
    folder = tokenizer_file(folder).parent
    from transformers import AutoTokenizer  # seconds: not for the processes that tokenise plain text

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CorpusError(f"the tokenizer in {folder} cannot be loaded: {str(error).splitlines()[0]}") from None
    return cast("PreTrainedTokenizerBase", tokenizer)


def tokenizer_digest(folder: str | Path) -> str:
    """What a dataset and a model compare to know that they speak the same tokens."""
    return digest_file(tokenizer_file(folder))


class PlainEncoder:
    """Encodes texts with nothing but the `tokenizers` library: what the processes of `prepare` hold."""

    def __init__(self, tokenizer_json: str, ends: Ends) -> None:
        """Build the tokenizer from its JSON."""
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        # A text that mentions <|end|> must not end the document: what is text stays text.
        self._tokenizer.encode_special_tokens = True
        # A tokenizer.json may say how long a model's input is; documents are not cut by it.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._bos = [] if ends.bos is None else [ends.bos]
        self._eos = [ends.eos]

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all texts behind one another, uint32, and how many each has, int64."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        pieces = [piece for encoding in encodings for piece in (self._bos, encoding.ids, self._eos)]
        ends = len(self._bos) + len(self._eos)
        lengths = np.array([len(encoding) + ends for encoding in encodings], dtype=np.int64)
        flat = itertools.chain.from_iterable(pieces)
        return np.fromiter(flat, dtype=np.uint32, count=int(lengths.sum())), lengths


def _plain(tokens_A: np.ndarray) -> Encoded:
    trained_A = np.ones(len(tokens_A), dtype=bool)
    trained_A[0] = False  # nothing stands before it to predict it from
    return Encoded(tokens_A=tokens_A, trained_A=trained_A)


class Encoder:
    """Encodes batches of documents with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, all_turns: bool = False) -> None:
        """Keep the tokenizer; reads nothing. With `all_turns` every token of a conversation is trained."""
        self._tokenizer, self._all_turns = tokenizer, all_turns
        ends = ends_of(tokenizer)
        self._special = tuple(tokenizer.all_special_tokens)
        self._plain = PlainEncoder(tokenizer.backend_tokenizer.to_str(), ends)

    def encode(self, documents: Sequence[Document]) -> list[Encoded]:
        """The documents' tokens, in order."""
        if documents and documents[0].messages:
            return [self._conversation(document) for document in documents]
        if not documents:
            return []
        tokens, lengths = self._plain.encode([d.text for d in documents])
        parts = np.split(tokens.astype(np.int64), np.cumsum(lengths)[:-1])
        return [_plain(part_A) for part_A in parts]

    def _conversation(self, document: Document) -> Encoded:
        for token in self._special:
            if token in document.text:
                raise CorpusError(
                    f"{document.name} contains the special token {token!r} as text, which would be taken for a turn's "
                    "border; remove it from the conversation, or the conversation from the file"
                )
        text, spans = answer_spans(self._tokenizer, document.messages, document.name)
        batch = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens_A = np.array(batch["input_ids"], dtype=np.int64)
        starts_A = np.array([start for start, _ in batch["offset_mapping"]], dtype=np.int64)
        trained_A = np.zeros(len(tokens_A), dtype=bool)
        for begin, end in spans:
            trained_A |= (starts_A >= begin) & (starts_A < end)
        if not trained_A[1:].any():
            raise CorpusError(f"{document.name}: the chat template renders its assistant turns as no token at all")
        trained_A |= self._all_turns
        trained_A[0] = False
        return Encoded(tokens_A=tokens_A, trained_A=trained_A)
