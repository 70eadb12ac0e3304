"""Calibration text as a stream of rows of tokens, in constant memory.

In: files, folders of files, or prepared folders, and a model's tokenizer. Out: rows of equal length (the last may be
shorter) and which of their tokens count as predictions, up to a limit of tokens. Documents follow each other, each
with the tokenizer's begin and end token; a document's first token and a row's first are never counted. Refused: what
does not exist, files of other kinds, lines that are not JSON records with a `text`, and text that gives no tokens.

Text and lines are read piece by piece, so a file may be of any size.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockexpand.corpus import open_corpus
from blockexpand.corpus.files import Document
from blockexpand.corpus.rows import batches
from blockexpand.corpus.tokenizer import Encoder, load_tokenizer, tokenizer_digest
from blockexpand.errors import CorpusError, GuidanceError
from blockexpand.staging import RECORD_NAME

# T = tokens of a row, A = tokens of a document.

PIECE_CHARS = 1 << 16
"""Longer texts are read in pieces of about so many characters, each a document of its own."""
_TEXT, _LINES = (".txt", ".md"), ".jsonl"
_DOCUMENTS_PER_BATCH = 16
_ROWS_PER_READ = 64


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens that stand behind each other."""

    tokens_T: np.ndarray
    """int64."""
    counted_T: np.ndarray
    """bool: whether the token's prediction counts."""


def rows(texts: tuple[str | Path, ...], model: Path, row_tokens: int, max_tokens: int) -> Iterator[Row]:
    """The rows of some texts in the order given, `max_tokens` tokens at most.

    Raises:
        GuidanceError, CorpusError: a text cannot be read, or was prepared for another model.
    """
    encoder = Encoder(load_tokenizer(model))
    paths = [_existing(Path(text)) for text in texts]
    left = max_tokens
    for row in itertools.chain.from_iterable(_rows_of(path, model, encoder, row_tokens) for path in paths):
        kept = Row(tokens_T=row.tokens_T[:left], counted_T=row.counted_T[:left])
        if kept.counted_T.any():
            yield kept
        left -= len(kept.tokens_T)
        if left == 0:
            return


def _existing(path: Path) -> Path:
    if not path.exists():
        raise GuidanceError(f"no such text: {path}; expected a file or folder of general text; check the path")
    if path.is_file() and path.suffix not in (*_TEXT, _LINES):
        raise GuidanceError(
            f"cannot tell what {path} holds; expected {', '.join(_TEXT)}, {_LINES}, a folder of such files, or one "
            "that `blockexpand prepare` wrote; rename or prepare it"
        )
    return path


def _rows_of(path: Path, model: Path, encoder: Encoder, row_tokens: int) -> Iterator[Row]:
    if (path / RECORD_NAME).is_file():
        return _prepared(path, model)
    return _cut(_encoded(_documents(path), encoder), row_tokens)


def _prepared(folder: Path, model: Path) -> Iterator[Row]:
    """The rows of a prepared folder's first split, without their padding."""
    corpus = open_corpus(folder)
    if corpus.record.tokenizer_digest != tokenizer_digest(model):
        raise GuidanceError(
            f"{folder} was prepared with another tokenizer than the one in {model}; expected this model's; prepare it "
            "again, or give the text itself"
        )
    split = corpus.rows(next(iter(corpus.record.splits)))
    for chosen in batches(split.num_rows, _ROWS_PER_READ):
        lengths = [sum(row) for row in split.lengths(chosen)]
        tokens_NT, counted_NT = split.tokens_NT(chosen), split.trained_NT(chosen)
        for length, tokens_T, counted_T in zip(lengths, tokens_NT, counted_NT, strict=True):
            yield Row(tokens_T=tokens_T[:length], counted_T=counted_T[:length])


def _documents(path: Path) -> Iterator[Document]:
    wanted = (*_TEXT, _LINES)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.name.endswith(wanted))
    if not files:
        raise GuidanceError(f"no text in {path}; expected files that end in {', '.join(wanted)}; give another folder")
    for file in files:
        try:
            yield from _lines(file) if file.suffix == _LINES else _pieces(file)
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{file} is not UTF-8 text: {error.reason} at byte {error.start} of a part of it; convert it first, "
                "e.g. iconv -f latin1 -t utf-8"
            ) from None


def _pieces(file: Path) -> Iterator[Document]:
    """A text file in pieces, cut at the ends of lines where these are near."""
    with open(file, encoding="utf-8") as stream:
        for number in itertools.count():
            text = stream.read(PIECE_CHARS)
            if not text:
                return
            text += stream.readline(PIECE_CHARS) if not text.endswith("\n") else ""
            if text.strip():
                yield Document(text=text, name=f"{file}#{number}", num_bytes=len(text.encode()))


def _lines(file: Path) -> Iterator[Document]:
    with open(file, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            place = f"{file}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{place} is not JSON: {error.msg}; it reads {line.strip()[:40]!r}; mend or remove the line"
                ) from None
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                has = ", ".join(record) if isinstance(record, dict) else type(record).__name__
                raise CorpusError(f"{place} has no text in the field 'text'; it has: {has}; rename the field")
            for start in range(0, len(text), PIECE_CHARS):
                if text[start : start + PIECE_CHARS].strip():
                    yield Document(text=text[start : start + PIECE_CHARS], name=place, num_bytes=0)


def _encoded(documents: Iterator[Document], encoder: Encoder) -> Iterator[Row]:
    """Each document's tokens, its first not counted."""
    while batch := list(itertools.islice(documents, _DOCUMENTS_PER_BATCH)):
        for encoded in encoder.encode_texts([d.text for d in batch]):
            yield Row(tokens_T=encoded.tokens_A, counted_T=encoded.trained_A)


def _cut(documents: Iterator[Row], row_tokens: int) -> Iterator[Row]:
    """Documents behind each other, cut into rows; the last row is as long as what is left."""
    tokens_A, counted_A = np.empty(0, dtype=np.int64), np.empty(0, dtype=bool)
    for document in documents:
        tokens_A = np.concatenate([tokens_A, document.tokens_T])
        counted_A = np.concatenate([counted_A, document.counted_T])
        while len(tokens_A) >= row_tokens:
            yield _row(tokens_A[:row_tokens], counted_A[:row_tokens])
            tokens_A, counted_A = tokens_A[row_tokens:], counted_A[row_tokens:]
    if len(tokens_A):
        yield _row(tokens_A, counted_A)


def _row(tokens_T: np.ndarray, counted_T: np.ndarray) -> Row:
    counted_T = counted_T.copy()
    counted_T[0] = False  # nothing stands before it in this row
    return Row(tokens_T=tokens_T, counted_T=counted_T)
