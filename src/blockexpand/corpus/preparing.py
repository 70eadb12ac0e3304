"""`prepare`: a recipe of sources into a folder of packed splits.

In: a recipe (sources, splits, row length) and the folder of the model whose tokenizer is used. Out: one
Arrow file a split and `blockexpand.json`, which counts what went in and what was dropped. The same
inputs give the same bytes. Refused: sources that cannot be read, and a split that would be empty.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from blockexpand.corpus.dataset import CorpusRecord, SourceCounts, SplitCounts, write_split
from blockexpand.corpus.documents import Document, content_key, split_of
from blockexpand.corpus.packing import best_fit, fill, pieces_of
from blockexpand.corpus.recipe import PrepareRecipe, SplitRecipe
from blockexpand.corpus.sources import Source, documents
from blockexpand.corpus.tokens import Encoded, Encoder, ends_of, load_tokenizer, tokenizer_digest
from blockexpand.digests import digest_file, digest_json
from blockexpand.errors import CorpusError
from blockexpand.progress import bar
from blockexpand.records import from_plain, read_yaml, to_plain, write_record
from blockexpand.staging import RECORD_NAME, check_output, staged_folder

_DOCUMENTS_PER_BATCH = 256


class _Split:
    """A split while it is being filled."""

    def __init__(self, recipe: SplitRecipe) -> None:
        self.recipe = recipe
        self.encoded: list[Encoded] = []
        self.num_tokens = 0
        self.num_bytes = 0

    @property
    def full(self) -> bool:
        return self.recipe.max_tokens is not None and self.num_tokens >= self.recipe.max_tokens

    def add(self, document: Document, encoded: Encoded) -> None:
        self.encoded.append(encoded)
        self.num_tokens += len(encoded.tokens_A)
        self.num_bytes += len(document.text.encode())


def load_recipe(path: Path) -> PrepareRecipe:
    """The recipe of a YAML file.

    Raises:
        RecordError: an unknown key, a wrong type, a value out of bounds.
    """
    return from_plain(PrepareRecipe, read_yaml(path), str(path))


def prepare(recipe: PrepareRecipe, tokenizer: str | Path, out: str | Path, overwrite: bool = False) -> CorpusRecord:
    """Read the sources, tokenise, pack, and write the folder `out`.

    Args:
        recipe: What goes in.
        tokenizer: The folder of the model whose tokenizer is used.
        out: The folder to write; it appears whole or not at all.
        overwrite: Replace an earlier prepared folder.

    Raises:
        CorpusError: a source cannot be read, or a split would be empty.
        StagingError: `out` is taken or cannot be written.
    """
    check_output(Path(out), overwrite)
    loaded = load_tokenizer(tokenizer)
    splits = {name: _Split(split) for name, split in recipe.splits.items()}
    sources = _fill(recipe, splits, Encoder(loaded))
    shape = (recipe.row_tokens, len(loaded))
    with staged_folder(Path(out), overwrite) as folder:
        record = CorpusRecord(
            row_tokens=recipe.row_tokens,
            tokenizer_digest=tokenizer_digest(tokenizer),
            vocabulary_size=len(loaded),
            recipe_digest=digest_json(recipe),
            conversations=recipe.sources[0].kind == "chat",
            sources=sources,
            splits={
                name: _write(folder / f"{name}.arrow", split, shape, ends_of(loaded).eos)
                for name, split in splits.items()
                if split.recipe.write
            },
        )
        write_record(folder / RECORD_NAME, record)
    return record


def _fill(recipe: PrepareRecipe, splits: dict[str, _Split], encoder: Encoder) -> tuple[SourceCounts, ...]:
    seen: set[bytes] = set()
    counts = []
    for source in recipe.sources:
        counter: Counter[str] = Counter()
        with bar(f"prepare {source.kind} {source.path}", 0, "documents") as progress:
            for name, batch in _batches(_sorted_out(recipe, source, splits, seen, counter)):
                for document, encoded in zip(batch, encoder.encode(batch), strict=True):
                    if splits[name].full:
                        counter["beyond"] += 1
                    else:
                        splits[name].add(document, encoded)
                        counter["kept"] += 1
                progress.advance(len(batch))
        counts.append(_source_counts(source, counter))
    return tuple(counts)


def _sorted_out(
    recipe: PrepareRecipe, source: Source, splits: dict[str, _Split], seen: set[bytes], counter: Counter[str]
) -> Iterator[tuple[str, Document]]:
    """The documents to encode, each with its split, until all splits are full; the rest is counted."""
    shares = {name: split.share for name, split in recipe.splits.items()}
    wanted = [split for split in splits.values() if split.recipe.write]
    for document in documents(source):
        if all(split.full for split in wanted):
            break
        counter["read"] += 1
        if len(document.text.strip()) < recipe.min_chars:
            counter["short"] += 1
            continue
        key = content_key(document.text)
        if key in seen:
            counter["duplicate"] += 1
            continue
        seen.add(key)
        name = split_of(document.text, shares)
        if not splits[name].recipe.write:
            counter["other"] += 1
        elif splits[name].full:
            counter["beyond"] += 1
        else:
            yield name, _cut(document, splits[name].recipe.max_document_chars)


def _cut(document: Document, max_chars: int | None) -> Document:
    if max_chars is None or len(document.text) <= max_chars:
        return document
    return dataclasses.replace(document, text=document.text[:max_chars])


def _batches(items: Iterator[tuple[str, Document]]) -> Iterator[tuple[str, list[Document]]]:
    waiting: dict[str, list[Document]] = {}
    for name, document in items:
        batch = waiting.setdefault(name, [])
        batch.append(document)
        if len(batch) == _DOCUMENTS_PER_BATCH:
            yield name, waiting.pop(name)
    yield from waiting.items()


def _source_counts(source: Source, counter: Counter[str]) -> SourceCounts:
    parts = ("kept", "short", "duplicate", "other", "beyond")
    assert counter["read"] == sum(counter[p] for p in parts), f"documents got lost in {source}: {counter}"
    return SourceCounts(
        source={key: str(value) for key, value in to_plain(source).items()},
        num_read=counter["read"],
        num_kept=counter["kept"],
        num_too_short=counter["short"],
        num_duplicates=counter["duplicate"],
        num_other_splits=counter["other"],
        num_beyond_limit=counter["beyond"],
    )


def _write(path: Path, split: _Split, shape: tuple[int, int], pad: int) -> SplitCounts:
    if not split.encoded:
        raise CorpusError(
            f"the split {path.stem!r} is empty: no document of the sources fell into its share of "
            f"{split.recipe.share}; give more text or a larger share"
        )
    return write_documents(path, split.encoded, shape=shape, pad=pad, num_bytes=split.num_bytes)


def write_documents(
    path: Path, encoded: Sequence[Encoded], *, shape: tuple[int, int], pad: int, num_bytes: int
) -> SplitCounts:
    """Pack documents and write them as one split; `shape` is (row tokens, vocabulary size)."""
    row_tokens, _ = shape
    pieces = [p for n, e in enumerate(encoded) for p in pieces_of(n, len(e.tokens_A), row_tokens)]
    rows = best_fit(pieces, row_tokens)
    num_trained = write_split(path, rows, encoded, shape=shape, pad=pad)
    return SplitCounts(
        num_rows=len(rows),
        num_documents=len(encoded),
        num_tokens=sum(p.length for p in pieces),
        num_trained_tokens=num_trained,
        num_bytes=num_bytes,
        largest_token=max(int(e.tokens_A.max()) for e in encoded),
        fill=round(fill(rows, row_tokens), 6),
        digest=digest_file(path),
    )
