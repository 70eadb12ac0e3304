"""What sources hold, before anything is done with them: for a person to read, and for `learn` to plan by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from blockexpand.corpus.files import Bad, look_into, read_documents
from blockexpand.corpus.recipe import Source, source_of

_LOOKED_AT = 2000
"""Documents that are counted; of more, their number is estimated by their bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What one source holds."""

    path: str
    kind: Literal["text", "code", "table", "chat"]
    """A chat has turns; the others are plain text."""
    columns: tuple[str, ...]
    """Of a table or of chats."""
    field: str | None
    """The column that is read; None where there is none or several make a chat."""
    separator: str | None
    """Between two documents of a text file; None = blank lines, empty = a file is one document."""
    num_files: int
    num_bytes: int
    """Of the files as they lie on the disk; 0 for a data set of the hub."""
    num_documents: int
    """Exact up to 2,000, estimated beyond by the share of the whole that they are; those seen where nobody can tell."""
    is_exact: bool
    num_bad: int
    """Of the documents looked at, those that cannot be read."""
    text_bytes: int
    """UTF-8 bytes of text; estimated as the documents are."""
    example: str
    """The first document's beginning."""


def inspect_sources(sources: str | Path | Source | Sequence[str | Path | Source]) -> list[SourceSummary]:
    """What each source holds; reads the first 2,000 documents of each at most.

    Args:
        sources: As `prepare` takes them.

    Raises:
        CorpusError: a source does not exist, nobody can tell what it holds, a column has to be named, or it breaks off.
    """
    given = [sources] if isinstance(sources, str | Path | Source) else list(sources)
    return [_summary(source_of(one)) for one in given]


def _summary(source: Source) -> SourceSummary:
    contents = look_into(source)
    found = num_bad = text_bytes = 0
    example, is_exact, read = "", True, 0.0
    sizes = [part.num_bytes or 1 for part in contents.parts]
    for part, size in zip(contents.parts, sizes, strict=True):
        for document, share in read_documents(contents, part):
            if found + num_bad == _LOOKED_AT:
                is_exact = False
                read += share * size
                break
            if isinstance(document, Bad):
                num_bad += 1
                continue
            found += 1
            text_bytes += document.num_bytes
            example = example or document.text[:200]
        if not is_exact:
            break
        read += size
    scale = 1.0 if is_exact or not read else sum(sizes) / read  # nobody says how long some data sets of the hub are
    return SourceSummary(
        path=source.path,
        kind=cast(Literal["text", "code", "table", "chat"], contents.kind),
        columns=contents.columns,
        field=contents.field,
        separator=contents.separator,
        num_files=len(contents.parts),
        num_bytes=contents.num_bytes,
        num_documents=round(found * scale),
        is_exact=is_exact,
        num_bad=num_bad,
        text_bytes=round(text_bytes * scale),
        example=example,
    )
