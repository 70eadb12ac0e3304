"""A document: the unit that sources give, filters drop, splits divide and packing keeps whole.

It belongs to a split by a hash of itself, never by where it stood. The hash is the smallest over its
runs of five words, so near copies (one sentence in fifty model files, tables that differ in a letter)
mostly fall on the same side, and the same text falls there on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

_SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One piece of text, or one conversation, that belongs together."""

    text: str
    """The text; of a conversation, its contents joined by newlines (for counting and splitting only)."""
    name: str
    """Where it came from, for people: a path, a line number."""
    messages: tuple[Message, ...] = ()
    """The turns of a conversation; empty for plain text."""


def content_key(text: str) -> bytes:
    """Equal for texts that differ in case, spacing and punctuation only: what exact duplicates share."""
    return hashlib.blake2b(" ".join(_WORD.findall(text.lower())).encode(), digest_size=16).digest()


def _smallest_shingle(text: str) -> int:
    words = _WORD.findall(text.lower())
    runs = (words[i : i + _SHINGLE_WORDS] for i in range(max(1, len(words) - _SHINGLE_WORDS + 1)))
    smallest = min(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest() for run in runs)
    # Hashed once more: a minimum lies close to 0, and shares are taken from a uniform number.
    return int.from_bytes(hashlib.blake2b(smallest, digest_size=8).digest(), "big")


def split_of(text: str, shares: Mapping[str, float]) -> str:
    """The name of the split that `text` belongs to, given each split's share of all documents.

    The shares sum to 1; their order matters, and adding a split at the end by taking from the last one
    leaves every other document where it was.
    """
    position = _smallest_shingle(text) / 2**64
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return list(shares)[-1]  # rounding of the sum


def files_in_hash_order(root: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The wanted files under `root`, ordered by a hash of their paths within it.

    `wanted` is asked with that path (`package/module.py`): text, because a `Path` for each of the hundred
    thousand files of an environment costs seconds.
    """
    found = []
    for parent, _, names in os.walk(root):
        folder = os.path.relpath(parent, root).replace(os.sep, "/")
        for name in names:
            path = name if folder == "." else f"{folder}/{name}"
            if wanted(path):
                found.append((hashlib.blake2b(path.encode(), digest_size=8).digest(), path))
    return [root / path for _, path in sorted(found)]
