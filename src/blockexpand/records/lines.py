"""JSON lines: values one below the other, read strictly, written whole, and appended so that each survives a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from blockexpand.errors import AgentError, RecordError
from blockexpand.records.codec import from_plain, parse_json, read_text, to_plain
from blockexpand.staging import staged_file

T = TypeVar("T")


def read_lines(cls: type[T], path: Path, cut: bool = False) -> list[T]:
    """The values of a JSON lines file; with `cut`, a last line that was not written whole is passed over.

    Raises:
        AgentError: a line is broken.
    """
    try:
        text = read_text(path)
    except RecordError as error:
        raise AgentError(f"{error}; expected the lines that agent or judge wrote") from None
    # Not splitlines(): what models write holds separators that JSON leaves as they are.
    whole, _, rest = text.rpartition("\n")
    if rest and not cut:
        raise AgentError(f"{path} ends within a line; expected it whole; go on with the run with --resume")
    values = []
    for number, line in enumerate(whole.split("\n") if whole else (), 1):
        where = f"{path}, line {number}"
        try:
            values.append(from_plain(cls, parse_json(line, where), where))
        except RecordError as error:
            raise AgentError(f"{error}; expected a line as it was written; the folder is damaged") from None
    return values


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Write values as JSON lines, whole or not at all."""
    with staged_file(path) as stream:
        for value in values:
            stream.write(line_of(value))


def line_of(value: Any) -> bytes:
    """One value as a line; half characters, which models and programs can produce, become question marks."""
    return (json.dumps(to_plain(value), ensure_ascii=False) + "\n").encode("utf-8", "replace")


def digest_lines(values: Iterable[Any]) -> str:
    """The digest of the file that `write_lines` makes of the values."""
    return "sha256:" + hashlib.sha256(b"".join(map(line_of, values))).hexdigest()


class Journal:
    """A file of lines that each survive a kill once they are written."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending, without the part of a line that a kill may have left at its end."""
        self._path = path
        if path.is_file():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                os.truncate(path, whole)
        self._stream = path.open("ab")

    def add(self, value: Any) -> None:
        """Append one line and make it durable."""
        self._stream.write(line_of(value))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
