"""What sources hold, before anything is done with them: for `learn` to plan by."""

from __future__ import annotations

from collections.abc import Sequence

from blockexpand.corpus.files import Bad, Contents, look_into, read_documents
from blockexpand.corpus.recipe import source_of
from blockexpand.digests import digest_json
from blockexpand.records.learn import DataSeen

_LOOKED_AT = 2000
"""Documents of a source that are counted; of more, their number is estimated by their bytes."""
_BYTES_PER_TOKEN = 3.5
"""Of text, before the tokenizer has read it."""


def look_at_sources(sources: Sequence[str]) -> DataSeen:
    """How many documents and tokens there are in all; reads the first 2,000 documents of each source at most.

    Args:
        sources: As `prepare` takes them.

    Raises:
        CorpusError: a source does not exist, nobody can tell what it holds, a column has to be named, or it breaks off.
    """
    contents = [look_into(source_of(one)) for one in sources]
    counts = [_count(one) for one in contents]
    return DataSeen(
        kind="chats" if any(one.kind == "chat" for one in contents) else "texts",
        num_documents=sum(num_documents for num_documents, _ in counts),
        num_tokens=round(sum(num_bytes for _, num_bytes in counts) / _BYTES_PER_TOKEN),
    )


def digest_sources(sources: Sequence[str]) -> str:
    """What tells sources apart by what is in them.

    Raises:
        CorpusError: as `look_at_sources`.
    """
    return digest_json([look_into(source_of(one)).digest() for one in sources])


def _count(contents: Contents) -> tuple[int, int]:
    """Documents and UTF-8 bytes of their text: exact up to 2,000, those seen where nobody can tell, else estimated."""
    found = looked_at = text_bytes = 0
    is_exact, read = True, 0.0
    sizes = [part.num_bytes or 1 for part in contents.parts]
    for part, size in zip(contents.parts, sizes, strict=True):
        for document, share in read_documents(contents, part):
            if looked_at == _LOOKED_AT:
                is_exact = False
                read += share * size
                break
            looked_at += 1
            if not isinstance(document, Bad):
                found += 1
                text_bytes += document.num_bytes
        if not is_exact:
            break
        read += size
    scale = 1.0 if is_exact or not read else sum(sizes) / read  # nobody says how long some data sets of the hub are
    return round(found * scale), round(text_bytes * scale)
