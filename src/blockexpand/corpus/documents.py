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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from blockexpand.corpus.chats import Message

_SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One piece of text, or one conversation, that belongs together."""

    text: str
    """The text; of a conversation, its contents joined by newlines (for counting and splitting only)."""
    name: str
    """Where it came from, for people: a path, a line number."""
    messages: tuple[Message, ...] = ()
    """The turns of a conversation; empty for plain text."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Bad:
    """A record that cannot be read: what is counted, quoted and, within the budget, passed over."""

    why: str
    """One line: the place, what is there, what was expected."""


def words_of(text: str) -> list[str]:
    """The words by which texts are compared: lower case, without spacing and punctuation."""
    return _WORD.findall(text.lower())


def key_of(words: Sequence[str]) -> bytes:
    """`content_key` of a text that has these words."""
    return hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()


def content_key(text: str) -> bytes:
    """Equal for texts that differ in case, spacing and punctuation only: what exact duplicates share."""
    return key_of(words_of(text))


def _smallest_shingle(words: Sequence[str]) -> bytes:
    runs = (words[i : i + _SHINGLE_WORDS] for i in range(max(1, len(words) - _SHINGLE_WORDS + 1)))
    return min(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest() for run in runs)


def position_of(words: Sequence[str], *, by_content: bool = False) -> float:
    """Where on [0, 1) the document with these words falls, by which its split is chosen.

    `by_content` hashes all words at once: forty times as fast, and near copies fall apart.
    """
    key = key_of(words) if by_content else _smallest_shingle(words)
    # Hashed once more: a minimum lies close to 0, and shares are taken from a uniform number.
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") / 2**64


def split_at(position: float, shares: Mapping[str, float]) -> str:
    """The name of the split at a position, given each split's share of all documents.

    The shares sum to 1; their order matters, and adding a split at the end by taking from the last one
    leaves every other document where it was.
    """
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return list(shares)[-1]  # rounding of the sum


def split_of(text: str, shares: Mapping[str, float]) -> str:
    """The name of the split that `text` belongs to, given each split's share of all documents."""
    return split_at(position_of(words_of(text)), shares)


def hash_order(paths: Iterable[str]) -> list[str]:
    """Paths in the order of a hash of each: the same on every machine, and no sample of one end of the alphabet."""
    return [path for _, path in sorted((hashlib.blake2b(p.encode(), digest_size=8).digest(), p) for p in paths)]


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
                found.append(path)
    return [root / path for path in hash_order(found)]
