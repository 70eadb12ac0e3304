"""The general text of the tiny base and of the demo, and how it is divided.

Four splits by a hash of each document: the tiny base read `train`; the demo replays `replay`, steers by
`validation` and reports on `test`. The hash decides on any machine and for any version of the packages,
so what the demo calls unseen the base has not seen.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from blockexpand.corpus import Document, PrepareRecipe, Source, all_documents, content_key
from blockexpand.errors import CorpusError
from blockexpand.progress import bar
from studies.tiny_base.prose import prose_documents

SHARES = {"train": 0.86, "replay": 0.10, "validation": 0.02, "test": 0.02}
"""Each split's share of the documents; the order is part of what the tiny base was made with."""

_EXTRA_FOLDERS = ("wiki", "stories", "plays", "web", "answers")
_GRAM_WORDS = 8
_NEAR_COPY = 0.5
"""A train document that shares this part of its eight-word runs with held-out text is left out."""


def general_documents(extra: Path | None) -> Iterator[tuple[str, Document]]:
    """(origin, document) of all general text: installed documentation, then the files in `extra`.

    `extra` holds `wiki/*.txt` (one article a line), `stories/*.txt` (stories ended by <|endoftext|>),
    `web/*.jsonl` (field `text`), `plays/*.txt` (speeches apart by blank lines) and `answers/*.json*`
    (records of any shape, whose longer texts are joined).

    Raises:
        CorpusError: `extra` is given and holds none of these.
    """
    if extra is not None and not any((extra / folder).is_dir() for folder in _EXTRA_FOLDERS):
        raise CorpusError(f"{extra} holds none of the folders {', '.join(_EXTRA_FOLDERS)}; put the text in one of them")
    for document in prose_documents():
        yield "documentation", document
    if extra is not None:
        yield from _extra_documents(extra)


def _extra_documents(extra: Path) -> Iterator[tuple[str, Document]]:
    separators = {"wiki": "\n", "stories": "<|endoftext|>", "plays": "\n\n"}
    for folder, separator in separators.items():
        if (extra / folder).is_dir():
            source = Source(kind="text", path=str(extra / folder), separator=separator)
            yield from ((folder, document) for document in all_documents(source))
    for path in sorted((extra / "web").glob("*.jsonl")):
        yield from (("web", document) for document in all_documents(Source(path=str(path))))
    for path in sorted((extra / "answers").glob("*.json*")):
        yield from (("answers", document) for document in _joined_records(path))


def _joined_records(path: Path) -> Iterator[Document]:
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(x) for x in text.splitlines()]
    for number, row in enumerate(rows):
        joined = "\n".join(piece for piece in _strings(row) if len(piece) >= 40)
        if joined and "```" not in joined:  # code is the demo's domain, not general text
            yield Document(text=joined, name=f"{path.name}#{number}", num_bytes=len(joined.encode()))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def split_of(text: str) -> str:
    """The name of the split that a text belongs to, by the hash with which the tiny base was made."""
    words = re.findall(r"\w+", text.lower())
    runs = (words[i : i + 5] for i in range(max(1, len(words) - 4)))
    key = min(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest() for run in runs)
    position = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64
    for name, share in SHARES.items():
        if position < share:
            return name
        position -= share
    return list(SHARES)[-1]


def with_prose(recipe: PrepareRecipe, folder: Path, splits: Collection[str]) -> PrepareRecipe:
    """The recipe with the prose of some of the splits as its only source, written to `folder`/prose.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prose.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        for document in prose_documents():
            if split_of(document.text) in splits:
                stream.write(json.dumps({"text": document.text}) + "\n")
    return dataclasses.replace(recipe, sources=(Source(path=str(path)),))


def divide(items: Iterable[tuple[str, Document]]) -> tuple[dict[str, list[Document]], dict[str, int]]:
    """The documents by split, without duplicates, train also without near copies of validation and test.

    Returns:
        The documents of each split, and counts (`kept <origin>`, `duplicate`, `near copy`).
    """
    splits: dict[str, list[Document]] = {name: [] for name in SHARES}
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    with bar("general text", 0, "documents") as progress:
        for origin, document in items:
            progress.advance(1)
            key = content_key(document.text)
            if key in seen:
                counts["duplicate"] += 1
                continue
            seen.add(key)
            splits[split_of(document.text)].append(document)
            counts[f"kept {origin}"] += 1
    held_out = {gram for name in ("validation", "test") for d in splits[name] for gram in _grams(d.text)}
    clean = [d for d in splits["train"] if not _is_near_copy(d.text, held_out)]
    counts["near copy"] = len(splits["train"]) - len(clean)
    splits["train"] = clean
    return splits, dict(counts)


def _grams(text: str) -> list[int]:
    words = re.findall(r"\w+", text.lower())
    return [hash(tuple(words[i : i + _GRAM_WORDS])) for i in range(len(words) - _GRAM_WORDS + 1)]


def _is_near_copy(text: str, held_out: set[int]) -> bool:
    grams = _grams(text)
    return bool(grams) and sum(gram in held_out for gram in grams) >= _NEAR_COPY * len(grams)
