"""English prose from the documentation that is installed beside us.

In: the folder of installed packages. Out: documents of running English, one a docstring or a page,
code and tables and parameter lists stripped. This is the general text of the tiny base and of the
demo: real, on every machine that has our dependencies, and none of it shipped by us.
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from blockexpand.corpus import Document

_MIN_WORDS = 8
"""Shorter paragraphs are labels and fragments, not prose."""

_SKIPPED_FOLDERS = frozenset({"tests", "test", "testing", "_vendor", "__pycache__", "vendored"})
_DOCSTRING = re.compile(r'^[ \t]*[rRuU]{0,2}("""|\'\'\')(.*?)\1', re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"```.*?(```|\Z)", re.DOTALL)
_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`")
_LINK = re.compile(r"\[([^\]\n]+)\]\([^)\n]*\)|`([^`<\n]+?)\s*<[^>\n]+>`_*")
_QUOTED = re.compile(r"``([^`\n]+)``|`([^`\n]+)`_{0,2}")
_ARGUMENT = re.compile(r"^[ \t]*(?:[-*+] )?[\w.*`,/ \[\]'\"|]{1,60}?(?:\([^()\n]*(?:\([^()\n]*\)[^()\n]*)*\))?\s*:\s+")
_BULLET = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,2}[.)])\s+")
_WORD = re.compile(r"[A-Za-z][a-z']*")
_PLAIN_WORD = re.compile(r"(?:[A-Z]?[a-z]+(?:['-][a-z]+)*|[AI]|[A-Z]{2,6}s?)[.,;:!?)\"']*")


def prose_of(text: str) -> str:
    """The running English of a docstring or page: one paragraph a line; empty when there is none."""
    text = _FENCE.sub("\n\n", text)
    paragraphs = [_paragraph(block) for block in re.split(r"\n[ \t]*\n", text)]
    return "\n".join(p for block in paragraphs for p in block)


def _paragraph(block: str) -> list[str]:
    lines = [line.rstrip() for line in block.expandtabs().splitlines() if line.strip()]
    found: list[str] = []
    current: list[str] = []
    for line in lines:
        # Asked for a colon first: the pattern backtracks over every line that has none.
        is_argument = ":" in line and _ARGUMENT.match(line)
        starts_anew = bool(is_argument or _BULLET.match(line)) and not _is_sentence_start(line)
        if starts_anew and current:
            found.append(" ".join(current))
            current = []
        current.append(_BULLET.sub("", _ARGUMENT.sub("", line) if starts_anew else line).strip())
    found.append(" ".join(current))
    cleaned = (_clean(paragraph) for paragraph in found)
    return [paragraph for paragraph in cleaned if _is_prose(paragraph)]


def _is_sentence_start(line: str) -> bool:
    head = line.split(":", 1)[0].split()
    return len(head) >= 4 and all(_PLAIN_WORD.fullmatch(word) for word in head)


def _clean(paragraph: str) -> str:
    paragraph = _ROLE.sub(r"\1", paragraph)
    paragraph = _LINK.sub(lambda m: m.group(1) or m.group(2), paragraph)
    paragraph = _QUOTED.sub(lambda m: m.group(1) or m.group(2), paragraph)
    paragraph = re.sub(r"\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*", lambda m: m.group(1) or m.group(2), paragraph)
    return " ".join(paragraph.split())


def _is_prose(paragraph: str) -> bool:
    """Running English: enough words, nearly all of them plain, no traces of code, markup or tables."""
    if any(mark in paragraph for mark in (">>>", "::", "://", "\\", "|", "==", "__", "{", "}", "<", "$", "#")):
        return False
    words = paragraph.split()
    if len(words) < _MIN_WORDS or not paragraph[0].isupper() or paragraph[-1] not in ".!?)":
        return False
    plain = sum(1 for word in words if _PLAIN_WORD.fullmatch(word.lstrip("(\"'")))
    return plain >= 0.84 * len(words)


def docstrings(text: str) -> Iterator[str]:
    """Every triple-quoted string of a Python source that opens a line: its docstrings, near enough.

    A regular expression and not a parser: fifty times as fast, and what is not prose falls out later.
    """
    for match in _DOCSTRING.finditer(text):
        yield match.group(2)


def _pages(path: Path) -> Iterable[str]:
    text = path.read_text(encoding="utf-8", errors="ignore")
    if path.suffix == ".py":
        return docstrings(text)
    if path.name == "METADATA":
        return [text.partition("\n\n")[2]]
    return [text]


def may_hold_prose(path: str) -> bool:
    """Sources and pages of documentation; folders of tests and vendored copies left out."""
    return path.endswith((".py", ".md", ".rst", "/METADATA")) and _SKIPPED_FOLDERS.isdisjoint(path.split("/"))


def prose_documents() -> Iterator[Document]:
    """Documents of running English of the installed packages, file by file in hash order."""
    root = Path(sysconfig.get_path("purelib"))
    found = (Path(parent, name).relative_to(root).as_posix() for parent, _, names in os.walk(root) for name in names)
    for path in sorted(
        filter(may_hold_prose, found), key=lambda p: hashlib.blake2b(p.encode(), digest_size=8).digest()
    ):
        for number, page in enumerate(_pages(root / path)):
            text = prose_of(page)
            if text:
                yield Document(text=text, name=f"{path}#{number}", num_bytes=len(text.encode()))
